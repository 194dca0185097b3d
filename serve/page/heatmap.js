// Raw heatmaps on canvases: scaled for the eye here and nowhere else, bilinear, over the part the model saw.

import { DIVERGING, SEQUENTIAL } from './colours.js';

const PIXELS = 64 * 64; // larger maps are pixel maps: a few outliers would hide all else
const DISPLAYED_SHARE = 0.995;
const SIGNED_FROM = -0.05; // of the peak: less is rounding
const SHOWN = { least: 900, most: 1600 }; // longer side of a canvas on the page, px
const SAVED_MOST = 8192; // what every browser can still make a picture of, px

const layers = new WeakMap();

/** How a map is scaled: the same rule as the pictures that the service draws. */
export function scaleOf(heatmap) {
  const values = flat(heatmap);
  const magnitude = values.map(Math.abs);
  const peak = (values.length > PIXELS ? quantile(magnitude, DISPLAYED_SHARE) : maximum(magnitude)) || 1;
  const least = values.reduce((low, value) => Math.min(low, value), 0);
  const signed = least < SIGNED_FROM * peak;
  const low = signed ? 0 : values.reduce((lowest, value) => Math.min(lowest, Math.max(value, 0)), peak);
  return { signed, low, peak };
}

/** Draws the image and, over the part that the model saw, the heatmap. */
export function paint(canvas, bitmap, { result = null, opacity = 0.6, saved = false } = {}) {
  const longer = Math.max(bitmap.width, bitmap.height);
  const wanted = saved ? Math.min(longer, SAVED_MOST) : Math.min(Math.max(longer, SHOWN.least), SHOWN.most);
  canvas.width = Math.max(1, Math.round((bitmap.width * wanted) / longer));
  canvas.height = Math.max(1, Math.round((bitmap.height * wanted) / longer));
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (result) paintEvidence(context, result, opacity);
}

/** Whether part of the image never reached the model. */
export function isCropped({ image }) {
  const [left, top, right, bottom] = image.crop;
  return left > 1 || top > 1 || right < image.width - 1 || bottom < image.height - 1;
}

function paintEvidence(context, result, opacity) {
  const [left, top, right, bottom] = cropOn(context.canvas, result.image);
  const { signed } = scaleOf(result.heatmap);
  context.save();
  shadeOutside(context, [left, top, right, bottom], opacity);
  if (signed) drainColour(context, [left, top, right, bottom], opacity);
  context.globalAlpha = opacity;
  context.drawImage(layerOf(result, right - left, bottom - top), left, top, right - left, bottom - top);
  context.restore();
}

/** The crop in whole pixels of the canvas; it reaches beyond the image where the model's input was padded. */
function cropOn(canvas, image) {
  const [x, y] = [canvas.width / image.width, canvas.height / image.height];
  const [left, top, right, bottom] = image.crop;
  return [Math.round(left * x), Math.round(top * y), Math.round(right * x), Math.round(bottom * y)];
}

function shadeOutside(context, [left, top, right, bottom], opacity) {
  context.beginPath();
  context.rect(0, 0, context.canvas.width, context.canvas.height);
  context.rect(left, top, right - left, bottom - top);
  context.globalAlpha = Math.min(opacity, 0.55);
  context.fillStyle = 'black';
  context.fill('evenodd');
}

/** Greyer below colours that mean for and against, so that those of the image are not taken for them. */
function drainColour(context, [left, top, right, bottom], opacity) {
  context.globalCompositeOperation = 'saturation';
  context.globalAlpha = Math.min(1, 1.5 * opacity);
  context.fillStyle = 'hsl(0 0% 50%)';
  context.fillRect(left, top, right - left, bottom - top);
  context.globalCompositeOperation = 'source-over';
}

/** The coloured map in the size asked for; the last one of each result is kept for the slider. */
function layerOf(result, width, height) {
  const kept = layers.get(result);
  if (kept && kept.width === width && kept.height === height) return kept;
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, width);
  canvas.height = Math.max(1, height);
  const image = new ImageData(canvas.width, canvas.height);
  colour(image, result.heatmap);
  canvas.getContext('2d').putImageData(image, 0, 0);
  layers.set(result, canvas);
  return canvas;
}

/** Fills an ImageData: bilinear between the centres of cells, then the colour table. */
export function colour(image, heatmap) {
  const { signed, low, peak } = scaleOf(heatmap);
  const [rows, columns] = heatmap.shape;
  const values = flat(heatmap);
  const rgba = signed ? DIVERGING : SEQUENTIAL;
  const across = positions(image.width, columns);
  const down = positions(image.height, rows);
  const span = signed ? 2 * peak : Math.max(peak - low, 1e-12);
  const origin = signed ? -peak : low;
  let pixel = 0;
  for (const y of down) {
    const [upper, lower] = [y.first * columns, y.second * columns];
    for (const x of across) {
      const above = values[upper + x.first] * (1 - x.share) + values[upper + x.second] * x.share;
      const below = values[lower + x.first] * (1 - x.share) + values[lower + x.second] * x.share;
      const unit = (above * (1 - y.share) + below * y.share - origin) / span;
      const step = 4 * Math.round(255 * Math.min(Math.max(unit, 0), 1));
      image.data[pixel] = rgba[step];
      image.data[pixel + 1] = rgba[step + 1];
      image.data[pixel + 2] = rgba[step + 2];
      image.data[pixel + 3] = rgba[step + 3];
      pixel += 4;
    }
  }
}

/** For each pixel of a side the two cells it lies between, and how far it is towards the second. */
function positions(pixels, cells) {
  return Array.from({ length: pixels }, (_, index) => {
    const place = Math.min(Math.max(((index + 0.5) * cells) / pixels - 0.5, 0), cells - 1);
    const first = Math.min(Math.floor(place), Math.max(cells - 2, 0));
    return { first, second: Math.min(first + 1, cells - 1), share: place - first };
  });
}

function flat({ data }) {
  return Float32Array.from(data.flat(), (value) => (Number.isFinite(value) ? value : 0));
}

function maximum(values) {
  return values.reduce((high, value) => Math.max(high, value), 0);
}

function quantile(values, share) {
  const ordered = values.slice().sort();
  const place = share * (ordered.length - 1);
  const index = Math.min(Math.floor(place), ordered.length - 2);
  return ordered[index] + (place - index) * (ordered[index + 1] - ordered[index]);
}
