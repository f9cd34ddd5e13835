// The words of the page: numbers and times as the user's language writes them, steps and states for people.

const WORDS = "en"; // the language of the page, and so of units among its words
const LOCALES = navigator.languages;

const whole = new Intl.NumberFormat(LOCALES, { maximumFractionDigits: 0 });
const precise = new Intl.NumberFormat(LOCALES, { maximumFractionDigits: 1, minimumFractionDigits: 1 });
const twoDigits = new Intl.NumberFormat(LOCALES, { minimumIntegerDigits: 2, maximumFractionDigits: 0 });
const percents = new Intl.NumberFormat(LOCALES, { style: "percent", maximumFractionDigits: 0 });
const moments = new Intl.DateTimeFormat(LOCALES, { dateStyle: "medium", timeStyle: "short" });
const relative = new Intl.RelativeTimeFormat(WORDS, { numeric: "auto" });

export const STATES = {
  QUEUED: "Waiting",
  PROCESSING: "Working",
  SUCCESS: "Done",
  FAILED: "Failed",
  CANCELLED: "Cancelled",
};
export const ENDED = ["SUCCESS", "FAILED", "CANCELLED"];

const STEPS = [
  [/^queued$/i, "Waiting for its turn"],
  [/swapped successfully|completed successfully/i, "Done"],
  [/^executing:.*(build|make|load|blend).*face ?model/i, "Learning the face from its pictures"],
  [/^executing:.*(reactor|swap)/i, "Swapping faces"],
  [/^executing:.*(restor|boost|upscale)/i, "Refining the faces"],
  [/^executing:.*(load|video info)/i, "Reading the files"],
  [/^executing:.*(combine|save|preview|create)/i, "Writing the result"],
  [/^executing:/i, "Working on the frames"],
  [/^retrieving/i, "Fetching the result"],
];

/** Return what a step of a job means for people. */
export function stepWords(step) {
  return STEPS.find(([pattern]) => pattern.test(step))?.[1] ?? step;
}

export function unit(value, name, digits = 0) {
  const options = { style: "unit", unit: name, unitDisplay: "short", maximumFractionDigits: digits };
  return new Intl.NumberFormat(WORDS, options).format(value);
}

export function bytes(count) {
  if (count < 1e6) return unit(Math.ceil(count / 1e3), "kilobyte");
  return count < 1e9 ? unit(count / 1e6, "megabyte", 1) : unit(count / 1e9, "gigabyte", 2);
}

export function duration(seconds) {
  const full = Math.max(0, Math.ceil(seconds));
  if (full < 60) return unit(full, "second");
  if (full < 3600) return `${unit(Math.floor(full / 60), "minute")} ${unit(full % 60, "second")}`;
  return `${unit(Math.floor(full / 3600), "hour")} ${unit(Math.floor((full % 3600) / 60), "minute")}`;
}

export const percent = (value) => percents.format(Math.floor(value) / 100);
export const count = (value) => whole.format(value);
export const rate = (fps) => `${fps < 10 ? precise.format(fps) : whole.format(fps)} fps`;
export const moment = (iso) => moments.format(new Date(iso));

/** Return a place in a clip, as 1:02.3. */
export function clock(seconds) {
  const tenths = Math.max(0, Math.floor(seconds * 10 + 1e-6));
  const rest = tenths % 600;
  const point = precise.format(1.1).replace(/[^.,٫]/g, "") || ".";
  return `${whole.format(Math.floor(tenths / 600))}:${twoDigits.format(Math.floor(rest / 10))}${point}${whole.format(rest % 10)}`;
}

export function ago(iso) {
  const seconds = (new Date(iso) - Date.now()) / 1000;
  for (const [name, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (-seconds >= length) return relative.format(Math.trunc(seconds / length), name);
  }
  return "just now";
}

/** Return the letter of a face to put in. */
export const letter = (place) => String.fromCharCode(65 + (place % 26));

export function plural(number, one, many) {
  return number === 1 ? one : many.replace("#", count(number));
}
