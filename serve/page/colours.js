// Colour tables of 256 steps: one for evidence from none to most, one for evidence against and for.

// matplotlib's inferno (CC0) at 17 equal steps: its lightness rises evenly, also for colour-blind eyes.
const INFERNO = [
  [0, 0, 4], [11, 7, 36], [33, 12, 74], [61, 9, 101], [87, 16, 110], [113, 25, 110], [138, 34, 106], [163, 44, 97],
  [188, 55, 84], [210, 70, 68], [228, 90, 49], [241, 115, 29], [249, 142, 9], [252, 172, 17], [249, 203, 53],
  [242, 234, 105], [252, 255, 164],
];
const AGAINST = [33, 102, 220];
const FOR = [214, 24, 40];

const LEAST = 0.55; // of the slider's opacity where there is no evidence: the image stays readable there

/** RGBA of evidence from 0 to 1. */
export const SEQUENTIAL = table((unit) => [...between(INFERNO, unit), 255 * (LEAST + (1 - LEAST) * unit)]);

/** RGBA of evidence from -1 (against) to 1 (for): clear at 0, and a little steeper there so that weak evidence can be seen. */
export const DIVERGING = table((unit) => {
  const signed = 2 * unit - 1;
  return [...(signed < 0 ? AGAINST : FOR), 255 * Math.abs(signed) ** 0.7];
});

function table(colour) {
  const rgba = new Uint8ClampedArray(256 * 4);
  for (let step = 0; step < 256; step += 1) rgba.set(colour(step / 255), 4 * step);
  return rgba;
}

function between(stops, unit) {
  const place = unit * (stops.length - 1);
  const index = Math.min(Math.floor(place), stops.length - 2);
  return stops[index].map((low, channel) => low + (place - index) * (stops[index + 1][channel] - low));
}

/** Draws a table as a bar, one pixel a step. */
export function drawLegend(canvas, rgba) {
  canvas.getContext('2d').putImageData(new ImageData(rgba.slice(), 256, 1), 0, 0);
}
