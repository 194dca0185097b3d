// Several methods side by side, each explaining the same class of the same image.

import { paint } from './heatmap.js';
import { button, make, wording } from './notice.js';

const AT_FIRST = 4;
const AT_ONCE = 2; // requests, so that one person does not fill the queue
const WAIT_S = 3;

/** What is compared at first: the method in use, then the fast ones in the service's order. */
export function firstChoice(methods, current) {
  const fast = methods.filter((method) => !method.slow && method.name !== current).map((method) => method.name);
  return [current, ...fast].slice(0, AT_FIRST);
}

/** Fills the checkboxes. */
export function showChips(list, methods, chosen, changed) {
  list.replaceChildren(...methods.map((method) => chip(method, chosen, changed)));
}

function chip(method, chosen, changed) {
  const box = make('input');
  box.type = 'checkbox';
  box.value = method.name;
  box.checked = chosen.includes(method.name);
  box.addEventListener('change', () => changed(method.name, box.checked));
  const words = make('span', '', method.name);
  if (method.slow) words.append(make('small', '', ' slow'));
  return make('label', 'chip', box, words);
}

/** The grid of cards. `explain(method, signal)` gives a result; `use(method)` makes a method the only one. */
export class Comparison {
  constructor(grid, { explain, use, save, drawn }) {
    this.grid = grid;
    this.explain = explain;
    this.use = use;
    this.save = save;
    this.drawn = drawn;
    this.cards = new Map();
    this.controller = null;
  }

  stop() {
    this.controller?.abort();
    for (const { element, note, result } of this.cards.values()) {
      if (!result && element.ariaBusy === 'true') note.replaceChildren('Not explained yet.');
      element.ariaBusy = 'false';
    }
  }

  /** Shows cards of these methods and fills those that are missing. */
  async show(bitmap, methods) {
    this.stop();
    this.controller = new AbortController();
    const { signal } = this.controller;
    this.bitmap = bitmap;
    this.cards = new Map(methods.map((method) => [method, this.card(method)]));
    const empty = make('p', 'quiet', 'Choose at least one method above.');
    this.grid.replaceChildren(...(methods.length ? [...this.cards.values()].map((card) => card.element) : [empty]));
    const waiting = [...this.cards.keys()];
    const worker = async () => {
      while (waiting.length && !signal.aborted) await this.fill(waiting.shift(), signal);
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
  }

  card(method) {
    const canvas = make('canvas');
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', `Your image; ${method} is being computed`);
    paint(canvas, this.bitmap);
    const note = make('p', 'card-note', make('span', 'spinner'), ' Explaining…');
    const title = make('h3', '', method);
    const save = button('Save', () => this.save(this.cards.get(method).result));
    const use = button('Use', () => this.use(method));
    save.disabled = true;
    save.setAttribute('aria-label', `Save the picture of ${method}`);
    use.setAttribute('aria-label', `Use ${method} alone`);
    const head = make('div', 'card-head', title, make('div', 'card-acts', save, use));
    const element = make('article', 'card', canvas, head, note);
    title.id = `card-${method}`;
    element.setAttribute('aria-labelledby', title.id);
    element.ariaBusy = 'true';
    return { element, canvas, note, save, result: null };
  }

  async fill(method, signal) {
    const card = this.cards.get(method);
    try {
      card.result = await this.explain(method, signal);
      card.note.replaceChildren(card.result.sentence);
      card.save.disabled = false;
      card.canvas.setAttribute('aria-label', `${method}: ${card.result.sentence}`);
      this.drawn();
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 503 || error.status === 429) return void this.later(method, error, signal);
      this.fail(card, method, error);
    }
    card.element.ariaBusy = 'false';
  }

  later(method, error, signal) {
    const wait = error.retryAfter ?? WAIT_S;
    this.cards.get(method).note.replaceChildren(`The service is busy. Trying again in ${wait} s`);
    setTimeout(() => !signal.aborted && this.fill(method, signal), 1000 * wait);
  }

  fail(card, method, error) {
    const { title, text } = wording(error);
    const again = button('Try again', () => {
      card.note.replaceChildren(make('span', 'spinner'), ' Explaining…');
      this.fill(method, this.controller.signal);
    });
    card.note.replaceChildren(make('strong', '', `${title}. `), text, ' ', again);
    card.canvas.setAttribute('aria-label', `Your image; ${method} failed`);
  }

  /** Draws all cards anew, for another opacity or view. */
  paint({ opacity, plain }) {
    for (const { canvas, result } of this.cards.values()) {
      paint(canvas, this.bitmap, { result: plain ? null : result, opacity });
    }
  }

  /** Answers of the finished cards. */
  results() {
    return [...this.cards.values()].map((card) => card.result).filter(Boolean);
  }
}
