// Resumable uploads (tus 1.0): in one request, since the service links a file that came whole and copies one that came
// in parts; going on after a cut, and after a reload when the same file is chosen again.

import { answerError, authorization, lock, request, ServiceError, UNREACHABLE } from "./api.js";

const PIECE_BYTES = 32 * 2 ** 20; // where something in between lets no larger request through
const AT_ONCE = 2; // browsers keep six connections to a host; players and event streams need some
const PAUSES_MS = [500, 1000, 2000, 4000, ...Array(10).fill(8000)];
const ITEM = "faceswap-upload ";
const VERSION = { "Tus-Resumable": "1.0.0" };
const CROSSED = [409, 423]; // statuses of two writers at a time, or of a piece that came twice
const GONE = [404, 410]; // statuses of an upload that has expired, or was deleted by another tab
const TOO_LARGE = 413;
const IN_BETWEEN = [0, TOO_LARGE, 502, 504]; // statuses by which a proxy may refuse a request that is too large for it

let sending = 0;
const waiting = [];
const uploads = new Map();

/** Return the upload of a file, the same for all who use it; each releases it in the end. */
export function uploadOf(file) {
  const item = ITEM + [file.name, file.size, file.lastModified, file.type].join(" ");
  if (!uploads.has(item)) uploads.set(item, new Upload(file, item));
  const upload = uploads.get(item).retain();
  if (upload.error) upload.start();
  return upload;
}

/** Ask for what needs uploads; once more where the service has lost one of them, when it is there again. */
export async function withUploads(uploads, ask) {
  try {
    return await ask();
  } catch (error) {
    if (error.code !== "unknown_upload") throw error;
    await Promise.all(uploads.map((upload) => upload.renew()));
    return ask();
  }
}

async function takeTurn() {
  if (sending >= AT_ONCE) await new Promise((resolve) => waiting.push(resolve));
  sending += 1;
}

function endTurn() {
  sending -= 1;
  waiting.shift()?.();
}

const uploadPath = (id) => `uploads/${encodeURIComponent(id)}`;

function base64(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

/** One file on its way to the service. Dispatches "change"; `finished` resolves to its id. */
class Upload extends EventTarget {
  constructor(file, item) {
    super();
    this.file = file;
    this.item = item;
    this.users = 0;
    this.offset = 0; // what the service has
    this.sent = 0; // what has left the browser, for who looks on
    this.isDone = false;
    this.stopped = new AbortController();
    this.start();
  }

  /** Send the file, or go on after an error. */
  start() {
    this.error = null;
    this.finished = this.run();
    this.finished.catch(() => {}); // who needs the id sees the error
  }

  /** Send again what the service has lost; resolves to the id. */
  renew() {
    if (this.isDone || this.error) {
      this.isDone = false;
      this.start();
    }
    return this.finished;
  }

  get share() {
    return this.file.size ? this.sent / this.file.size : 1;
  }

  retain() {
    this.users += 1;
    return this;
  }

  /** Have the service erase the file once nobody here uses it any more: a job has its own. */
  release() {
    this.users -= 1;
    if (this.users) return;
    uploads.delete(this.item);
    localStorage.removeItem(this.item);
    this.stopped.abort();
    if (this.id) request(uploadPath(this.id), { method: "DELETE", headers: VERSION }).catch(() => {}); // it expires by itself
  }

  async run() {
    await takeTurn();
    try {
      await this.findOrCreate();
      await this.send();
      this.isDone = true;
      this.changed();
      return this.id;
    } catch (error) {
      this.error = error;
      this.changed();
      throw error;
    } finally {
      endTurn();
    }
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  call(path, init) {
    return request(path, { ...init, headers: { ...VERSION, ...init.headers }, signal: this.stopped.signal });
  }

  async findOrCreate() {
    this.id = localStorage.getItem(this.item);
    if (this.id && (await this.findOffset())) return;
    const headers = {
      "Upload-Length": String(this.file.size),
      "Upload-Metadata": `filename ${base64(this.file.name)}`,
    };
    const response = await this.call("uploads", { method: "POST", headers });
    this.id = (await response.json()).id;
    this.offset = this.sent = 0;
    localStorage.setItem(this.item, this.id);
  }

  /** Ask how much the service has; returns false when it does not know the upload any more. */
  async findOffset() {
    try {
      const response = await this.call(uploadPath(this.id), { method: "HEAD" });
      this.offset = this.sent = Number(response.headers.get("Upload-Offset"));
      return true;
    } catch (error) {
      if (!GONE.includes(error.status)) throw error;
      localStorage.removeItem(this.item);
      return false;
    }
  }

  async send() {
    let failures = 0;
    let most = this.file.size;
    let reason = null; // of the last failure
    while (this.offset < this.file.size) {
      try {
        if (failures) {
          const before = this.offset;
          if (!(await this.findOffset())) await this.findOrCreate();
          if (this.offset > before) failures = 0;
          else if (IN_BETWEEN.includes(reason)) most = Math.min(most, PIECE_BYTES);
        }
        await this.sendNext(most);
        failures = 0;
      } catch (error) {
        reason = error.status;
        const isPassing = CROSSED.includes(reason) || GONE.includes(reason) || (reason === TOO_LARGE && most > PIECE_BYTES);
        if (error.name === "AbortError" || (reason > 0 && reason < 500 && !isPassing)) throw error;
        if (failures === PAUSES_MS.length) throw error;
        await new Promise((resolve) => setTimeout(resolve, PAUSES_MS[failures]));
        failures += 1;
      }
    }
  }

  /** Send what comes next by XMLHttpRequest, because fetch does not tell how much was sent. */
  sendNext(most) {
    const start = this.offset;
    return new Promise((resolve, reject) => {
      const call = new XMLHttpRequest();
      const headers = {
        ...VERSION,
        ...authorization(),
        "Upload-Offset": String(start),
        "Content-Type": "application/offset+octet-stream",
      };
      const stop = () => call.abort();
      this.stopped.signal.addEventListener("abort", stop);
      call.open("PATCH", uploadPath(this.id));
      for (const [name, value] of Object.entries(headers)) call.setRequestHeader(name, value);
      call.upload.addEventListener("progress", (event) => {
        this.sent = start + event.loaded;
        this.changed();
      });
      call.addEventListener("load", () => {
        if (call.status === 204) {
          this.offset = this.sent = Number(call.getResponseHeader("Upload-Offset"));
          this.changed();
          return resolve();
        }
        const problem = answerError(call.status, call.responseText);
        if (call.status === 401) lock(problem.message);
        reject(problem);
      });
      call.addEventListener("error", () => reject(new ServiceError(UNREACHABLE)));
      call.addEventListener("abort", () => reject(new DOMException("The upload was stopped.", "AbortError")));
      call.addEventListener("loadend", () => this.stopped.signal.removeEventListener("abort", stop));
      call.send(this.file.slice(start, start + most));
    });
  }
}
