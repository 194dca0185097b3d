// The view in the address: everything but the image.

/** Reads `#model=…&method=…&target=…&opacity=60&view=plain&compare=a,b&image=1f2e…`; what is missing is undefined. */
export function read(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ''));
  const text = (name) => given.get(name) || undefined;
  const opacity = Number.parseInt(given.get('opacity') ?? '', 10);
  return {
    model: text('model'),
    method: text('method'),
    target: text('target'),
    opacity: opacity >= 0 && opacity <= 100 ? opacity : undefined,
    view: given.get('view') === 'plain' ? 'plain' : 'heatmap',
    compare: given.has('compare') ? given.get('compare').split(',').filter(Boolean) : undefined,
    image: text('image'),
  };
}

/** The hash of a view. */
export function write({ model, method, target, opacity, view, compare, image }) {
  const parts = new URLSearchParams({ model, method, target, opacity: String(opacity) });
  if (view === 'plain') parts.set('view', 'plain');
  if (compare) parts.set('compare', compare.join(','));
  if (image) parts.set('image', image);
  return `#${parts.toString().replaceAll('%2C', ',')}`;
}
