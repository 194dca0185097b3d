// Downloads: the picture as shown in the image's own size, and the service's answer.

import { paint } from './heatmap.js';

/** Saves the image with its heatmap as PNG. */
export async function savePicture(bitmap, result, opacity) {
  const canvas = document.createElement('canvas');
  paint(canvas, bitmap, { result, opacity, saved: true });
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
  if (!blob) throw new Error('This browser cannot write a picture of that size.');
  save(blob, `${name(result)}.png`);
}

/** Saves the answer as it came, with the raw map. */
export function saveData(result) {
  save(new Blob([JSON.stringify(result, null, 1)], { type: 'application/json' }), `${name(result)}.json`);
}

function name({ model, method, target }) {
  const words = [model, method, target.label].join('-').toLowerCase();
  return `raylens-${words.replace(/[^a-z0-9]+/g, '-').replace(/^-|-$/g, '')}`;
}

function save(blob, filename) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
