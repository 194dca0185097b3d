// Errors in words for people, each with what can be done about it.

const PATIENCE_S = 5; // where the service does not say how long
const RETRIES = 5; // then it waits for the person

/** The one place for errors: shows a message with buttons, counts down to the next try. */
export class Notice {
  constructor(element) {
    this.element = element;
    this.timer = null;
    this.tries = 0;
  }

  get open() {
    return !this.element.hidden;
  }

  clear() {
    clearInterval(this.timer);
    this.element.hidden = true;
    this.element.replaceChildren();
  }

  /** After success: the next busy answer starts to count anew. */
  settle() {
    this.tries = 0;
    this.clear();
  }

  /** Tells what happened; `retry` is offered where trying again can help. */
  tell(error, retry = null) {
    this.clear();
    const { title, text, again } = wording(error);
    const words = make('div', 'notice-words', make('strong', '', title), make('p', '', text));
    if (error.requestId) words.append(make('p', 'small-text', `Request ${error.requestId}`));
    const buttons = make('div', 'row');
    if (again && retry) buttons.append(button('Try again', () => this.leave(retry)));
    buttons.append(button('Close', () => this.leave()));
    this.element.replaceChildren(words, buttons);
    this.element.hidden = false;
    if (busy(error) && retry) this.countDown(error, words, retry);
  }

  leave(then = null) {
    this.clear();
    then?.();
  }

  countDown(error, words, retry) {
    this.tries += 1;
    if (this.tries > RETRIES) return;
    let left = error.retryAfter ?? PATIENCE_S;
    const clock = make('p', 'countdown');
    clock.setAttribute('aria-live', 'off'); // the alert is read once, not every second
    const say = () => {
      clock.textContent = `Trying again in ${left} s`;
    };
    say();
    words.append(clock);
    this.timer = setInterval(() => {
      left -= 1;
      if (left <= 0) this.leave(retry);
      else say();
    }, 1000);
  }
}

const busy = (error) => error.status === 503 || error.status === 429 || error.code === 'no_model';

/** Title, text, and whether trying again can help. */
export function wording(error) {
  if (error.code === 'no_model') {
    return { title: 'No model is loaded', text: 'The service may still be starting.', again: true };
  }
  if (busy(error)) return { title: 'The service is busy', text: 'Your image waits here.', again: true };
  if (error.code === 'offline') {
    return { title: 'No connection', text: 'The service cannot be reached. Check your network.', again: true };
  }
  if (error.status === 413) return { title: 'The image is too large', text: sentence(error.message), again: false };
  if (error.status === 401 || error.status === 403) {
    return { title: 'The service asks for a key', text: sentence(error.message), again: true };
  }
  if (error.status >= 500) return { title: 'The service failed', text: sentence(error.message), again: true };
  if (error.status >= 400) return { title: 'This cannot be explained', text: sentence(error.message), again: false };
  if (error.code === 'unreadable') return { title: 'The service failed', text: error.message, again: true };
  return { title: 'This does not work', text: error.message, again: false };
}

function sentence(text) {
  const upper = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(upper) ? upper : `${upper}.`;
}

/** An element with a class and children; strings become text, never markup. */
export function make(tag, className = '', ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

export function button(text, act, className = 'button small') {
  const element = make('button', className, text);
  element.type = 'button';
  element.addEventListener('click', act);
  return element;
}
