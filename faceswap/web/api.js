// Calls to the service. All addresses are relative to the page, so that it works behind a path prefix.

const KEY_ITEM = "faceswap-key";
const SIGNED_S = 24 * 3600;
export const UNREACHABLE = "The service does not answer. Is it still running?";

export const session = new EventTarget(); // "locked" when a key is asked for, with the reason
let key = sessionStorage.getItem(KEY_ITEM); // of this tab only, and gone with it

export const hasKey = () => Boolean(key);

export function useKey(text) {
  key = text;
}

export function keepKey() {
  sessionStorage.setItem(KEY_ITEM, key);
}

export function authorization() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export class ServiceError extends Error {
  /** @param status The status of the answer, 0 where there was none. */
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Return the error of an answer: problem+json (RFC 9457), or any other text of something in between. */
export function answerError(status, text) {
  try {
    const problem = JSON.parse(text);
    if (problem.detail || problem.title) return new ServiceError(problem.detail || problem.title, status, problem.code);
  } catch {
    // Not the service's own answer: only the status can be shown.
  }
  return new ServiceError(status ? `The service answered with an error (${status}).` : UNREACHABLE, status);
}

export function lock(message) {
  session.dispatchEvent(new CustomEvent("locked", { detail: message }));
}

/** Request a path; returns the answer, or throws a `ServiceError` with a message to show. */
export async function request(path, init = {}) {
  let response;
  try {
    response = await fetch(path, { ...init, headers: { ...authorization(), ...init.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(UNREACHABLE);
  }
  if (response.ok || response.status === 304) return response;
  const problem = answerError(response.status, await response.text());
  if (response.status === 401) lock(key && problem.message);
  throw problem;
}

/** Request a path and return the JSON of the answer. */
export async function call(path, init) {
  const text = await (await request(path, init)).text();
  return text ? JSON.parse(text) : null;
}

export function callWithJson(path, method, body) {
  return call(path, { method, body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
}

export const jobPath = (promptId, what = "") => `jobs/${encodeURIComponent(promptId)}${what && `/${what}`}`;

/** Return an address with more parameters, which may begin with a question mark or an ampersand. */
export function withQuery(path, ...queries) {
  const given = queries.filter(Boolean).map((query) => query.replace(/^[?&]/, ""));
  return given.length ? `${path}?${given.join("&")}` : path;
}

/** Return the path of a result, from the `/download/…` of a status document or a bare file name. */
export function downloadPath(result) {
  const name = decodeURIComponent(result.replace(/^\/download\//, ""));
  return `download/${encodeURIComponent(name)}`;
}

/** Sign links to what belongs to a job; returns the absolute address of each. */
export async function signLinks(promptId, seconds) {
  const { links } = await call(withQuery(jobPath(promptId, "links"), `expires_in=${seconds}`), { method: "POST" });
  return Object.fromEntries(
    Object.entries(links).map(([name, link]) => [name, new URL(link.replace(/^\//, ""), document.baseURI).href]),
  );
}

/**
 * Return what an address of each thing of a job ends with, so that players and event sources, which send no key, are
 * let in: a signature where there is a key.
 */
export async function signatures(promptId) {
  if (!key) return {};
  const links = await signLinks(promptId, SIGNED_S);
  return Object.fromEntries(Object.entries(links).map(([name, link]) => [name, new URL(link).search]));
}

/** Show a picture of the service in an element: fetched with the key where there is one, since elements send none. */
export async function showPicture(element, path) {
  if (element.dataset.path === path) return;
  element.dataset.path = path;
  if (!key) {
    element.src = path;
    return;
  }
  try {
    const blob = await (await request(path)).blob();
    if (element.dataset.path !== path) return;
    if (element.src.startsWith("blob:")) URL.revokeObjectURL(element.src);
    element.src = URL.createObjectURL(blob);
  } catch {
    if (element.dataset.path === path) element.dispatchEvent(new Event("error"));
  }
}
