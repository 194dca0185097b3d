// The page: holds what the person chose, asks the service, shows the answer.

import * as api from './api.js';
import { ClassSearch, showClasses } from './classes.js';
import { Comparison, firstChoice, showChips } from './compare.js';
import { methodNote, showDetails } from './details.js';
import { isCropped, paint } from './heatmap.js';
import { keyDialog } from './key.js';
import { kindOf, showLegends } from './legend.js';
import * as link from './link.js';
import { Notice, make } from './notice.js';
import { PictureError, listen, open } from './picture.js';
import { saveData, savePicture } from './save.js';

const BODY_BYTES = 20 * 2 ** 20; // until the service has said its own limit
const SLOW_MS = 6000;

const $ = (id) => document.getElementById(id);
const notice = new Notice($('notice'));
const state = {
  models: [],
  model: null,
  method: null,
  target: 'predicted',
  opacity: 60,
  view: 'heatmap',
  compare: null, // names of methods, or null where one is shown
  expected: null, // fingerprint of the image that the link was made with
  bodyBytes: BODY_BYTES,
  picture: null,
  result: null, // what is on the screen
  results: new Map(), // of this picture
};
let running = null; // AbortController of the request for the main picture
let main = Promise.resolve(); // settles with that request: what it brings need not be asked for twice

const search = new ClassSearch($('search'), $('found'), chooseTarget);
const comparison = new Comparison($('cards'), {
  explain: (method, signal) => main.then(() => cached(method, signal)),
  use: useMethod,
  save: (result) => savePicture(state.picture.bitmap, result, state.opacity / 100),
  drawn: paintComparison,
});

start();

async function start() {
  api.onKeyNeeded(keyDialog($('key-dialog')));
  wire();
  await loadModels();
}

async function loadModels() {
  try {
    const [models, bytes] = await Promise.all([api.fetchModels(), api.fetchBodyLimit().catch(() => BODY_BYTES)]);
    state.bodyBytes = bytes;
    state.models = models;
    if (!models.length) throw new api.ServiceError('No model is loaded.', { code: 'no_model' });
    await follow(link.read(location.hash));
    notice.settle();
  } catch (error) {
    notice.tell(error, loadModels);
  }
}

/** Takes over the view of a link; what it does not name keeps its default. */
async function follow(view) {
  const model = state.models.find(({ name }) => name === view.model) ?? state.models[0];
  Object.assign(state, { view: view.view, compare: view.compare ?? null, expected: view.image ?? null });
  state.opacity = view.opacity ?? state.opacity;
  await setModel(model, view);
  showChoices();
  tellLink(view, model);
  if (state.picture) await show();
}

async function setModel(model, { method, target } = {}) {
  const known = model.methods.some(({ name }) => name === method);
  state.model = model;
  state.method = known ? method : model.default_method;
  state.target = target ?? 'predicted';
  state.compare = state.compare?.filter((name) => model.methods.some((entry) => entry.name === name)) ?? null;
  state.labels = [];
  state.labels = await api.fetchLabels(model.name);
  search.setLabels(state.labels);
}

function tellLink(view, model) {
  const words = [];
  if (view.model && view.model !== model.name) {
    words.push(`This service has no model “${view.model}”; ${model.name} is used.`);
  }
  if (view.image && !state.picture) {
    words.push('The link keeps its image to itself: choose the same image to see the same view.');
  }
  $('link-hint').textContent = words.join(' ');
  $('link-hint').hidden = words.length === 0;
}

// --- what the person does

async function take(file) {
  cancel();
  if (state.model) notice.clear(); // else it counts down to the next look for models
  try {
    const picture = await open(file, state.bodyBytes);
    state.picture?.bitmap.close();
    Object.assign(state, { picture, result: null, results: new Map() });
    forgetResult();
  } catch (error) {
    if (!(error instanceof PictureError)) throw error;
    notice.tell(error);
    return;
  }
  if (!state.model) return;
  if (state.expected && state.picture.fingerprint && state.expected !== state.picture.fingerprint) {
    say('This is another image than the link was made with.');
    state.target = 'predicted';
  }
  state.expected = null;
  await show();
}

function chooseTarget(index) {
  state.target = String(index);
  show();
}

async function chooseModel(name) {
  try {
    await setModel(state.models.find((model) => model.name === name), { method: state.method });
  } catch (error) {
    notice.tell(error, () => chooseModel(name));
    return;
  }
  showChoices();
  await show();
}

function useMethod(name) {
  state.method = name;
  state.compare = null;
  showChoices();
  $('method').focus();
  show();
}

function setMode(mode) {
  comparison.stop();
  state.compare = mode === 'compare' ? firstChoice(state.model.methods, state.method) : null;
  showChoices();
  show();
}

function setCompared(name, wanted) {
  const others = state.compare.filter((other) => other !== name);
  state.compare = wanted ? [...others, name] : others;
  show();
}

/** Stops what is under way; what is on the screen stays. */
function cancel() {
  running?.abort();
  comparison.stop();
  setBusy(false);
}

function undo() {
  if (!notice.open && $('busy').hidden) return;
  cancel();
  notice.clear();
  if (!state.result) return;
  Object.assign(state, { method: state.result.method, target: String(state.result.target.class) });
  showChoices();
}

// --- asking

/** An answer for the current picture, model and class; kept, so that going back is immediate. */
async function cached(method, signal) {
  const { picture, model, target, results } = state;
  const key = (wanted) => JSON.stringify([model.name, method, wanted]);
  if (!results.has(key(target))) {
    const result = await api.explain(picture.file, { model: model.name, method, target, signal });
    results.set(key(target), result);
    results.set(key(String(result.target.class)), result);
  }
  return results.get(key(target));
}

/** Brings the screen to what is chosen. */
async function show() {
  writeLink();
  if (!state.picture) return;
  $('start').hidden = true;
  $('result').hidden = false;
  running?.abort();
  const controller = new AbortController();
  running = controller;
  if (!state.result) paint($('picture'), state.picture.bitmap);
  setBusy(true);
  if (state.compare) comparison.show(state.picture.bitmap, state.compare);
  const asked = cached(mainMethod(), controller.signal);
  main = asked.catch(() => {}); // told below
  try {
    const result = await asked;
    if (controller.signal.aborted) return;
    state.result = result;
    notice.settle();
    showResult();
  } catch (error) {
    if (controller.signal.aborted) return;
    comparison.stop();
    notice.tell(error, show);
    say('');
  } finally {
    if (running === controller) setBusy(false);
  }
}

/** Whose answer fills the list of classes: the chosen method, or one of those compared. */
function mainMethod() {
  const { method, compare } = state;
  return !compare?.length || compare.includes(method) ? method : compare[0];
}

// --- showing

function showChoices() {
  const { models, model, method, compare } = state;
  $('model').replaceChildren(...models.map((entry) => choice(entry.name, entry.ready ? '' : ' (starting)')));
  $('model').value = model.name;
  $('model').disabled = false;
  $('method').replaceChildren(...model.methods.map((entry) => choice(entry.name, entry.slow ? ' (slow)' : '')));
  $('method').value = method;
  $('method-note').textContent = methodNote(model.methods.find((entry) => entry.name === method));
  check('mode', compare ? 'compare' : 'one');
  check('view', state.view);
  $('one').hidden = Boolean(compare);
  $('compare').hidden = !compare;
  for (const id of ['method-field', 'save-picture', 'save-data']) $(id).hidden = Boolean(compare);
  if (compare) showChips($('chips'), model.methods, compare, setCompared);
  showOpacity();
}

function check(name, value) {
  for (const input of document.querySelectorAll(`[name=${name}]`)) input.checked = input.value === value;
}

function choice(name, suffix) {
  const element = make('option', '', name + suffix);
  element.value = name;
  return element;
}

function showOpacity() {
  $('opacity').value = state.opacity;
  $('opacity-value').textContent = `${state.opacity} %`;
  $('opacity').setAttribute('aria-valuetext', `${state.opacity} percent`);
}

function forgetResult() {
  $('classes').replaceChildren();
  $('sentence').textContent = '';
  for (const id of ['details', 'reading', 'outside']) $(id).hidden = true;
  for (const id of ['save-picture', 'save-data']) $(id).disabled = true;
}

function showResult() {
  const { result } = state;
  showClasses($('classes'), result, chooseTarget);
  $('sentence').textContent = result.sentence.replaceAll(' %', '\u00a0%');
  say(result.sentence);
  showDetails($('details'), result);
  $('save-picture').disabled = false;
  $('save-data').disabled = false;
  draw();
  writeLink();
}

/** Draws the image anew: another result, view or opacity. */
function draw() {
  const { result, picture, opacity, view, compare } = state;
  if (!picture) return;
  const plain = view === 'plain';
  paint($('picture'), picture.bitmap, { result: plain ? null : result, opacity: opacity / 100 });
  $('picture').setAttribute('aria-label', alternative());
  $('reading').hidden = plain || !result;
  $('outside').hidden = plain || !result || !isCropped(result);
  if (compare) paintComparison();
  else if (result) explainColours([result]);
}

function paintComparison() {
  if (!state.compare) return;
  comparison.paint({ opacity: state.opacity / 100, plain: state.view === 'plain' });
  explainColours(comparison.results());
}

function explainColours(results) {
  const methodOf = (result) => state.model.methods.find(({ name }) => name === result.method);
  showLegends($('legends'), new Set(results.map((result) => kindOf(result, methodOf(result)))));
}

/** Says of the picture in words what the eye sees. */
function alternative() {
  const { result, view } = state;
  if (!result) return 'Your image';
  if (view === 'plain') return 'Your image without the heatmap';
  return `Your image with a heatmap of what speaks for ${result.target.label}. ${result.sentence}`;
}

let slow = null;

function setBusy(busy) {
  clearTimeout(slow);
  $('busy').hidden = !busy;
  $('frame').setAttribute('aria-busy', String(busy));
  if (!busy) return;
  $('busy-text').textContent = 'Explaining…';
  say('Explaining');
  slow = setTimeout(() => {
    $('busy-text').textContent = 'Still working…';
    say('Still working');
  }, SLOW_MS);
}

function say(text) {
  $('status').textContent = text;
}

// --- link and downloads

function writeLink() {
  const { model, method, target, opacity, view, compare, picture, expected } = state;
  const hash = link.write({ model: model.name, method, target, opacity, view, compare, image: picture?.fingerprint ?? expected });
  if (hash !== location.hash) history.replaceState(null, '', hash);
  $('link-text').hidden = true;
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    flash($('copy'), 'Copied');
    say('Link copied');
  } catch {
    $('link-text').value = location.href; // no clipboard without a secure context or permission
    $('link-text').hidden = false;
    $('link-text').select();
    say('Copy the link from the field');
  }
}

function flash(element, text) {
  const before = element.textContent;
  if (before === text) return;
  element.textContent = text;
  setTimeout(() => {
    element.textContent = before;
  }, 1500);
}

// --- wiring

function wire() {
  listen({ inputs: [$('file'), $('camera')], veil: $('veil'), take, refuse: (text) => notice.tell(new PictureError(text)) });
  for (const id of ['choose', 'another']) $(id).addEventListener('click', () => $('file').click());
  $('photograph').addEventListener('click', () => $('camera').click());
  $('model').addEventListener('change', (event) => chooseModel(event.target.value));
  $('method').addEventListener('change', (event) => useMethod(event.target.value));
  $('mode').addEventListener('change', (event) => setMode(event.target.value));
  $('view').addEventListener('change', (event) => {
    state.view = event.target.value;
    draw();
    writeLink();
  });
  $('opacity').addEventListener('input', (event) => {
    state.opacity = Number(event.target.value);
    showOpacity();
    draw();
  });
  $('opacity').addEventListener('change', writeLink);
  $('cancel').addEventListener('click', undo);
  $('copy').addEventListener('click', copyLink);
  $('save-picture').addEventListener('click', () => savePicture(state.picture.bitmap, state.result, state.opacity / 100));
  $('save-data').addEventListener('click', () => saveData(state.result));
  $('skip').addEventListener('click', (event) => {
    event.preventDefault(); // the hash holds the view
    $('main').focus();
  });
  document.addEventListener('keydown', (event) => event.key === 'Escape' && !document.querySelector('dialog[open]') && undo());
  window.addEventListener('hashchange', () => state.model && follow(link.read(location.hash)));
  window.addEventListener('online', () => notice.open && (state.model ? show() : loadModels()));
}
