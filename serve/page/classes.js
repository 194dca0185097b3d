// The class to explain: the best ones as buttons with bars, any other by search.

import { make } from './notice.js';

const SHOWN = 50;

/** A share as people write it. */
export function percent(score) {
  const value = 100 * score;
  if (value > 0 && value < 0.1) return '< 0.1 %';
  if (value < 100 && value > 99.9) return '> 99.9 %';
  return `${value.toFixed(value < 10 ? 1 : 0)} %`;
}

/** Fills the list of classes; the explained one is pressed, and added where it is not among the best. */
export function showClasses(list, { top, target }, choose) {
  const known = top.some((entry) => entry.class === target.class);
  const entries = known ? top : [...top, target];
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.class : null;
  list.replaceChildren(...entries.map((entry) => make('li', '', classButton(entry, target, choose))));
  if (focused !== null) list.querySelector(`[data-class="${focused}"]`)?.focus();
}

function classButton(entry, target, choose) {
  const bar = make('span', 'bar', make('span', 'bar-fill'));
  bar.setAttribute('aria-hidden', 'true');
  bar.firstChild.style.setProperty('--share', `${Math.max(0.5, 100 * entry.score)}%`);
  const [name, score] = [make('span', 'class-name', entry.label), make('span', 'class-score', percent(entry.score))];
  const element = make('button', 'class', name, score, bar);
  element.type = 'button';
  element.dataset.class = entry.class;
  element.setAttribute('aria-pressed', String(entry.class === target.class));
  element.addEventListener('click', () => choose(entry.class));
  return element;
}

/** A combobox over all labels: type, arrow keys, Enter, Esc. */
export class ClassSearch {
  constructor(input, list, choose) {
    this.input = input;
    this.list = list;
    this.choose = choose;
    this.labels = [];
    this.found = [];
    this.active = -1;
    input.addEventListener('input', () => this.search());
    input.addEventListener('focus', () => this.input.value && this.search());
    input.addEventListener('blur', () => this.close());
    input.addEventListener('keydown', (event) => this.onKey(event));
    list.addEventListener('pointerdown', (event) => event.preventDefault()); // the input keeps the focus
    list.addEventListener('click', (event) => this.take(event.target.closest('[role=option]')));
  }

  setLabels(labels) {
    this.labels = labels.map((label, index) => ({ label, index, key: fold(label) }));
    this.close();
    this.input.value = '';
  }

  search() {
    this.found = matches(this.labels, this.input.value).slice(0, SHOWN);
    this.active = this.found.length ? 0 : -1;
    const options = this.found.map((entry, place) => option(entry, place));
    const none = make('li', 'none', 'No class of this model matches.');
    this.list.replaceChildren(...(options.length ? options : [none]));
    this.list.hidden = this.input.value.trim() === '';
    this.input.setAttribute('aria-expanded', String(!this.list.hidden));
    this.mark();
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute('aria-expanded', 'false');
    this.input.removeAttribute('aria-activedescendant');
  }

  onKey(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key in steps) {
      event.preventDefault();
      if (this.list.hidden) this.search();
      else this.move(steps[event.key]);
    } else if (event.key === 'Enter' && !this.list.hidden) {
      event.preventDefault();
      this.take(this.list.children[this.active]);
    } else if (event.key === 'Escape' && !this.list.hidden) {
      event.stopPropagation();
      this.close();
    }
  }

  move(step) {
    if (!this.found.length) return;
    this.active = (this.active + step + this.found.length) % this.found.length;
    this.mark();
  }

  mark() {
    for (const [place, element] of [...this.list.children].entries()) {
      if (element.role === 'option') element.setAttribute('aria-selected', String(place === this.active));
    }
    const active = this.found.length ? this.list.children[this.active] : null;
    if (active && !this.list.hidden) {
      this.input.setAttribute('aria-activedescendant', active.id);
      active.scrollIntoView({ block: 'nearest' });
    } else this.input.removeAttribute('aria-activedescendant');
  }

  take(element) {
    if (!element || element.dataset.class === undefined) return;
    this.input.value = '';
    this.close();
    this.choose(Number(element.dataset.class));
  }
}

function option(entry, place) {
  const element = make('li', '', make('span', '', entry.label), make('span', 'quiet', String(entry.index)));
  element.role = 'option';
  element.id = `found-${place}`;
  element.dataset.class = entry.index;
  return element;
}

/** Labels with the words of a query: those that begin with it first; a number finds the class of that index. */
function matches(labels, query) {
  const wanted = fold(query.trim());
  if (!wanted) return [];
  const words = wanted.split(/\s+/);
  const hits = labels.filter(({ key, index }) => String(index) === wanted || words.every((word) => key.includes(word)));
  const rank = ({ key, index }) => (String(index) === wanted ? 0 : key.startsWith(wanted) ? 1 : 2);
  return hits.sort((one, other) => rank(one) - rank(other) || one.index - other.index);
}

/** Lower case, without accents. */
function fold(text) {
  return text.normalize('NFD').replace(/\p{M}/gu, '').toLowerCase();
}
