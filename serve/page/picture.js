// Images from the person: chosen, photographed, dropped or pasted.

export class PictureError extends Error {}

const MEGABYTE = 2 ** 20;

/** Decodes a file as displayed: turned as its EXIF says, as the service does. */
export async function open(file, bodyBytes) {
  if (file.size === 0) throw new PictureError(`${named(file)} is empty.`);
  if (file.size > bodyBytes) {
    throw new PictureError(
      `${named(file)} has ${megabytes(file.size)} MB; this service accepts up to ${megabytes(bodyBytes)} MB. ` +
        'Save it smaller, or as a JPEG, and try again.',
    );
  }
  const bitmap = await createImageBitmap(file, { imageOrientation: 'from-image' }).catch(() => {
    throw new PictureError(`${named(file)} is no image that can be shown here. Use a JPEG, PNG, WebP or GIF file.`);
  });
  return { file, bitmap, fingerprint: await fingerprint(file) };
}

function named(file) {
  return file.name ? `“${file.name}”` : 'This file';
}

function megabytes(bytes) {
  const value = bytes / MEGABYTE;
  return value < 10 ? Math.max(value, 0.1).toFixed(1) : Math.round(value).toString();
}

/** First digits of the bytes' SHA-256, by which a link knows its image; null where the browser has no secure context. */
async function fingerprint(file) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', await file.arrayBuffer()));
  return Array.from(digest.slice(0, 6), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Calls `take(file)` for what is chosen, dropped or pasted, and `refuse(message)` for what is no file. */
export function listen({ inputs, veil, take, refuse }) {
  for (const input of inputs) {
    input.addEventListener('change', () => {
      if (input.files.length) take(input.files[0]);
      input.value = '';
    });
  }
  listenForPaste(take);
  listenForDrop(veil, take, refuse);
}

function listenForPaste(take) {
  document.addEventListener('paste', (event) => {
    const file = event.clipboardData?.files[0];
    if (!file) return; // text, for example a class in the search field
    event.preventDefault();
    take(file);
  });
}

function listenForDrop(veil, take, refuse) {
  let depth = 0; // enter and leave are told for every element below the pointer
  const cover = (change) => {
    depth = change === 0 ? 0 : Math.max(0, depth + change);
    veil.hidden = depth === 0;
  };
  window.addEventListener('dragenter', (event) => {
    event.preventDefault();
    cover(1);
  });
  window.addEventListener('dragleave', () => cover(-1));
  window.addEventListener('dragover', (event) => event.preventDefault());
  window.addEventListener('drop', (event) => {
    event.preventDefault();
    cover(0);
    const file = event.dataTransfer?.files[0];
    if (file) take(file);
    else refuse('That is no file. Save the image first, then drop the file or choose it.');
  });
}
