// The dialog that asks for an API key.

/** Returns `ask(refused)`: a promise of a key, or of null where the person cancels. Questions at once share one dialog. */
export function keyDialog(dialog) {
  const [form, input, note] = ['#key-form', '#key', '#key-note'].map((name) => dialog.querySelector(name));
  const words = note.textContent;
  let open = null;

  function ask(refused) {
    open ??= new Promise((resolve) => {
      note.textContent = refused ? 'The service does not know that key. Check it and try again.' : words;
      input.value = '';
      dialog.returnValue = '';
      dialog.addEventListener('close', () => resolve(answer()), { once: true });
      dialog.showModal();
      input.focus();
    });
    return open;
  }

  function answer() {
    open = null;
    return dialog.returnValue === 'use' ? input.value.trim() : null;
  }

  form.addEventListener('submit', (event) => {
    event.preventDefault();
    dialog.close('use');
  });
  dialog.querySelector('#key-cancel').addEventListener('click', () => dialog.close(''));
  return ask;
}
