// What lies on the bench: clips, pictures of faces, and who becomes whom. Whatever changes it tells so by `changed`.

import { $ } from "./dom.js";
import { joinOptions } from "./request.js";

export const clips = [];
export const pictures = [];
export const bench = {
  current: null, // the clip on the stage
  armed: null, // the face that was clicked first: {person} or {source}
  trial: null, // the trial under way, or on the stage
};

let made = 0;
const listeners = [];

/** Call a function after each change. */
export function onChange(listener) {
  listeners.push(listener);
}

export function changed() {
  for (const listener of listeners) listener();
}

/** Make a clip out of where it comes from: its `name`, its `upload`, `job` or `address`, its `url` for the browser. */
export function makeClip(source) {
  return {
    key: `clip ${(made += 1)}`,
    duration: 0,
    start: 0,
    end: 0,
    at: 0,
    frameRate: null,
    people: [], // the faces of the frame that had the most
    found: [], // those of the frame at `foundAt`
    foundAt: null,
    joins: new Map(), // a face's index to the key of the source it gets
    isTouched: false, // by the user: then nothing is joined by default any more
    isPlayable: true,
    looks: 0,
    isLooking: false,
    problem: null,
    ...source,
  };
}

export function makePicture(source) {
  return { key: `picture ${(made += 1)}`, faces: [], isLooking: true, problem: null, ...source };
}

export function setDuration(clip, duration) {
  clip.duration = duration;
  clip.start = Math.min(clip.again?.start ?? 0, duration);
  clip.end = Math.min(clip.again?.end ?? duration, duration);
  clip.at = clip.start;
}

export const isOnePerson = () => pictures.length > 1 && $("one_person").checked;

/** Return the faces that can be put in, each with its place, which is its letter and its colour. */
export function sources() {
  const faces = pictures.flatMap((picture) =>
    picture.faces.map((face) => ({ key: `${picture.key} ${face.index}`, index: face.index, picture, face })),
  );
  if (!isOnePerson()) return faces.map((source, place) => ({ ...source, place }));
  return faces.filter((source) => source.index === 0).map((source) => ({ ...source, place: 0 }));
}

/** Return the source that a face of a clip gets. */
export const sourceOf = (clip, index, all = sources()) => all.find((source) => source.key === clip.joins.get(index));

/** Return the mapping of an earlier job, also where it gave numbers of faces instead. */
function mappingOf({ mapping, face_index: faces, source_face_index: from = "0" }) {
  if (mapping || !faces) return mapping ?? [];
  const indexes = from.split(",").map(Number);
  return faces.split(",").map((face, place) => ({ face: Number(face), source_face: indexes[place % indexes.length] }));
}

/** Join as an earlier job did, or the largest face with the only new one, or the largest with the first and so on. */
function joinByDefault(clip, all) {
  if (clip.isTouched) return;
  clip.joins.clear();
  for (const { face, image = 0, source_face: index = 0 } of mappingOf(clip.again ?? {})) {
    const source = all.find((one) => one.picture === pictures[image] && one.index === index);
    if (source) clip.joins.set(face, source.key);
  }
  if (clip.joins.size) return;
  const isAlike = isOnePerson();
  clip.people.slice(0, isAlike ? 1 : all.length).forEach((person, place) => all[place] && clip.joins.set(person.index, all[place].key));
}

/** Join anew what the user has not joined, once there are other faces. */
export function joinAll() {
  const all = sources();
  const keys = new Set(all.map((source) => source.key));
  for (const clip of clips) {
    for (const [index, key] of clip.joins) if (!keys.has(key)) clip.joins.delete(index);
    joinByDefault(clip, all);
  }
}

/** Return the joins of a clip as options, with the pictures that they need. */
export function joinedOf(clip) {
  const all = sources();
  const joins = [...clip.joins.keys()].map((index) => [index, sourceOf(clip, index, all)]).filter(([, source]) => source);
  const usable = pictures.filter((picture) => !picture.problem);
  const inOrder = [...usable.filter((picture) => picture.upload), ...usable.filter((picture) => picture.address)]; // of the form
  return joinOptions(joins, inOrder, isOnePerson());
}
