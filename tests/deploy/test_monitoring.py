"""Rules and alerts: valid, each tried firing and quiet, each with its section in the runbook."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
RUNBOOK = (ROOT / "deploy" / "RUNBOOK.md").read_text()
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, which is in Debian's package prometheus"
)


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules" / f"{name}.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_grouped_under_names_of_their_own() -> None:
    files = [yaml.safe_load(path.read_text()) for path in (MONITORING / "rules").glob("*.yaml")]
    names = [group["name"] for content in files for group in content["groups"]]
    assert len(set(names)) == len(names) == 4
    assert len({rule["record"] for rule in rules("recording")}) == len(rules("recording"))


@needs_promtool
def test_rules_and_configuration_are_valid() -> None:
    promtool("check", "config", "prometheus.yaml")  # and the rules that it names


@needs_promtool
@pytest.mark.parametrize("path", sorted((MONITORING / "tests").glob("*.yaml")), ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(path: Path) -> None:
    promtool("test", "rules", str(path))


def test_every_alert_is_tried_firing_and_quiet() -> None:
    contents = [yaml.safe_load(path.read_text()) for path in (MONITORING / "tests").glob("*.yaml")]
    cases = [case for content in contents for test in content["tests"] for case in test["alert_rule_test"]]
    series = {
        alert: sum(len(test["input_series"]) for c in contents for test in c["tests"] if mentions(test, alert))
        for alert in alerts()
    }
    for alert in alerts():
        firing = [case["exp_alerts"] for case in cases if case["alertname"] == alert and case["exp_alerts"]]
        assert firing, alert
        quiet = any(case["alertname"] == alert and not case["exp_alerts"] for case in cases)
        assert quiet or series[alert] > len(firing[0]), f"{alert}: nothing shows that it can be quiet"


def mentions(test: dict[str, Any], alert: str) -> bool:
    return any(case["alertname"] == alert for case in test["alert_rule_test"])


def alerts() -> list[str]:
    return [rule["alert"] for rule in rules("alerts")]


@pytest.mark.parametrize("rule", rules("alerts"), ids=alerts())
def test_an_alert_says_how_grave_it_is_what_was_found_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    annotations = rule["annotations"]
    assert "{{ $" in annotations["summary"] + annotations["description"]
    path, _, anchor = annotations["runbook"].partition("#")
    assert (ROOT / path).read_text() == RUNBOOK
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK, re.M | re.S))
    assert anchor == rule["alert"].lower()
    section = sections[rule["alert"]]
    assert "* Look" in section or "(#raylens" in section or "| error |" in section, section


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.M) == alerts()


def test_the_runbook_names_what_there_is() -> None:
    from pipeline import errors
    from schemas.rejects import REJECT_CODES

    named = set(re.findall(r"`(\w+Error)`", RUNBOOK))
    assert named == {name for name in named if hasattr(errors, name)}
    codes = set(re.findall(r"`([a-z_]+)`(?=[^`]*?:)", RUNBOOK[RUNBOOK.index("* `missing_object`") :].split("\n##")[0]))
    assert codes <= set(REJECT_CODES)
    for link in re.findall(r"\]\(([^)#]+)", RUNBOOK):
        assert link == "README.md" or (ROOT / "deploy" / link).exists(), link
    panels = "".join(path.read_text() for path in (MONITORING / "dashboards").glob("*.json"))
    for title in re.findall(r"(?<!\*)\*([A-Z][a-z ]+)\*(?!\*)", RUNBOOK):
        assert f'"{title}' in panels, title


def test_what_is_generated_is_what_the_sources_say() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import build, json; print(json.dumps(build.files()))"],
        cwd=MONITORING, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    for path, text in yaml.safe_load(done.stdout).items():
        assert (MONITORING / path).read_text() == text, "run `python deploy/monitoring/build.py`"


def test_the_kustomization_names_files_that_exist() -> None:
    content = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())
    [dashboards] = content["configMapGenerator"]
    for path in (*content["resources"], *dashboards["files"]):
        assert (MONITORING / path).is_file(), path
    assert len(dashboards["files"]) == len(list((MONITORING / "dashboards").glob("*.json")))
