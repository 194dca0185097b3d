"""Metrics of explanations: faithfulness, sanity, localisation. torch on the device; no Ray, no I/O."""
