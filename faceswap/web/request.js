// What is sent for a clip: the options of the form, the faces that were joined, and where the files are.

import { $ } from "./dom.js";

const OPTIONS = {
  crf: Number,
  frame_rate: Number,
  detect_gender: String,
  face_restore_model: String,
  face_restore_visibility: Number,
  face_boost: (text) => text === "true",
  one_person: Boolean,
  mapping: Array,
  format: String,
  start: Number,
  end: Number,
  at: Number,
  priority: Number,
};
const LONGEST_LABEL = 100;

const fieldsOf = () => Object.keys(OPTIONS).map($).filter((field) => field?.closest("#options"));

/** Return the message about the first field that cannot be sent, and focus it; null if there is none. */
export function mistakeInFields() {
  const fields = [...$("options").querySelectorAll("input")];
  fields.forEach((field) => field.setAttribute("aria-invalid", String(!field.checkValidity())));
  const wrong = fields.find((field) => !field.checkValidity());
  if (!wrong) return null;
  for (let box = wrong.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  wrong.focus();
  return `“${wrong.closest("label").firstChild.textContent.trim()}” can be ${wrong.dataset.allowed}.`;
}

/** Put the options of an earlier job into the form. */
export function fillFields(options) {
  for (const field of fieldsOf()) {
    const value = field.id in options ? String(options[field.id]) : "";
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) {
      field.add(new Option(`${field.id === "crf" ? "CRF " : ""}${value}`, value));
    }
    field.value = field.id === "crf" && value === "20" ? "" : value;
  }
}

function fieldOptions(clip) {
  const options = {};
  for (const field of fieldsOf()) {
    const value = field.value.trim();
    if (value && (field.id !== "format" || !clip.isPicture)) options[field.id] = OPTIONS[field.id](value);
  }
  return options;
}

/**
 * Return which face gets which, and the pictures that are needed for it. `joins` are `[face, source]`, where a source
 * has its `picture` and its `index` in there.
 */
export function joinOptions(joins, pictures, isOnePerson) {
  if (isOnePerson) {
    const faces = joins.map(([face]) => ({ face }));
    return { pictures, options: { one_person: true, ...(faces.length ? { mapping: faces } : {}) } };
  }
  const used = pictures.filter((picture) => joins.some(([, source]) => source.picture === picture));
  const mapping = joins
    .map(([face, source]) => ({ face, image: used.indexOf(source.picture), source_face: source.index }))
    .sort((one, other) => one.face - other.face);
  const isPlain = mapping.length === 1 && Object.values(mapping[0]).every((value) => value === 0);
  return { pictures: used.length ? used : pictures.slice(0, 1), options: mapping.length && !isPlain ? { mapping } : {} };
}

/** Make the name of a result out of the name of a clip: of what a name may be made of, without extension. */
function resultName(name) {
  const stem = name.replace(/\.[^.]*$/, "").normalize("NFKD").replace(/[^A-Za-z0-9._ -]+/g, "_").replace(/^[._ ]+|[._ ]+$/g, "");
  return stem && `${stem.slice(0, 80)} swapped`;
}

/**
 * Prepare the request for a clip as it is now: `body()` makes it once its files are with the service, `release()` tells
 * that it needs them no more.
 */
export function prepareRequest(clip, joined, more = {}) {
  const options = { ...fieldOptions(clip), ...joined.options };
  if (!clip.isPicture && clip.duration) {
    if (clip.start > 0) options.start = seconds(clip.start);
    if (clip.end < clip.duration) options.end = seconds(clip.end);
  }
  if (clip.isPicture && $("picture-format").value) options.format = $("picture-format").value;
  Object.assign(options, more);
  if ("at" in options) ["start", "end", "format", "frame_rate"].forEach((name) => delete options[name]);
  const fields = {
    options: JSON.stringify(options),
    label: clip.name.slice(0, LONGEST_LABEL),
    output_name: $("output_name").value.trim() || resultName(clip.name),
    consent: $("consent").value.trim(),
  };
  const sources = [clip, ...joined.pictures];
  const uploads = sources.map((source) => source.upload).filter(Boolean);
  for (const upload of uploads) upload.retain();
  return {
    uploads,
    release: () => uploads.splice(0).forEach((upload) => upload.release()),
    async body() {
      const body = new FormData();
      for (const [name, value] of Object.entries(fields)) if (value) body.append(name, value);
      for (const source of sources) {
        const [name, value] = await whereabouts(source, source === clip ? "video" : "image");
        body.append(name, value);
      }
      return body;
    },
  };
}

const seconds = (value) => Math.round(value * 1e4) / 1e4;

/** Return the field that says where the file of a clip or a picture is. */
export async function whereabouts(source, role) {
  if (source.upload) return [`${role}_upload`, await source.upload.finished];
  if (source.job) return ["from_job", source.job];
  return [`${role}_url`, source.address];
}
