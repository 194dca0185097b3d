// The service's JSON interface. Addresses are relative, so that the page also works below a path prefix.

const KEY = 'raylens-key';

/** What went wrong, in words for people. `code` is the service's own, or one of: offline, unreadable. */
export class ServiceError extends Error {
  constructor(message, { code = 'error', status = 0, retryAfter = null, requestId = null } = {}) {
    super(message);
    this.code = code;
    this.status = status;
    this.retryAfter = retryAfter;
    this.requestId = requestId;
  }
}

let askKey = async () => null;

/** Sets who is asked for an API key: `async (refused) => key or null`. */
export function onKeyNeeded(ask) {
  askKey = ask;
}

export const fetchModels = async () => (await request('v1/models')).models;

export const fetchLabels = async (model) => (await request(`v1/models/${encodeURIComponent(model)}/labels`)).labels;

/** The largest body that the service accepts, in bytes. */
export const fetchBodyLimit = async () => (await request('page/limits.json')).body_bytes;

/** Explains one image: the original bytes, never a smaller copy. */
export function explain(file, { model, method, target, signal }) {
  const query = new URLSearchParams({ model, method, target, top_k: '5', format: 'json', resolution: 'layer' });
  const body = new FormData();
  body.append('image', file, file.name || 'image');
  return request(`explain?${query}`, { method: 'POST', body, signal });
}

async function request(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const response = await send(path, { ...options, headers: key ? { Authorization: `Bearer ${key}` } : {} });
    if (response.ok) return json(response);
    if (response.status !== 401) throw await failure(response);
    const another = sessionStorage.getItem(KEY) === key ? await askKey(Boolean(key)) : sessionStorage.getItem(KEY);
    if (!another) throw await failure(response);
    sessionStorage.setItem(KEY, another);
  }
}

async function send(path, options) {
  try {
    return await fetch(path, { credentials: 'same-origin', ...options });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServiceError('The service cannot be reached.', { code: 'offline' });
  }
}

async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServiceError('The service sent an answer that this page cannot read.', { code: 'unreadable' });
  }
}

async function failure(response) {
  const said = await response.json().catch(() => ({}));
  const told = typeof said.error === 'string' ? { message: said.error } : said.error; // KServe's form is a string
  const { code, message, request_id: requestId } = told ?? {};
  return new ServiceError(message ?? `The service answered ${response.status}.`, {
    code: code ?? `http_${response.status}`,
    status: response.status,
    requestId,
    retryAfter: seconds(response.headers.get('Retry-After')),
  });
}

/** Retry-After in seconds: it is a number, or a date. */
function seconds(text) {
  if (!text) return null;
  const value = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(value) ? Math.max(1, Math.ceil(value)) : null;
}
