// Who becomes whom: the faces in the clip and the new ones, joined by clicking one and then the other.

import { $, announce, h, iconButton, renderList, setText, show, showMessage, svgPath } from "./dom.js";
import { bench, changed, isOnePerson, pictures, sourceOf, sources } from "./state.js";
import { letter } from "./words.js";

export const MOST_PICTURES = 8;

let hooks; // {onjoined(), onremove(picture)}

export function clickPerson(person) {
  const clip = bench.current;
  const all = sources();
  const isJoined = clip.joins.has(person.index);
  if (bench.armed?.source !== undefined) return join(person.index, bench.armed.source);
  if (all.length === 1 || (all.length && isOnePerson())) return isJoined ? unjoin(person.index) : join(person.index, all[0].key);
  const isSecond = bench.armed?.person === person.index;
  bench.armed = isSecond ? null : { person: person.index };
  if (isSecond && isJoined) return unjoin(person.index);
  if (!isSecond && all.length) announce("Now choose the new face.");
  changed();
}

function clickSource(source) {
  const clip = bench.current;
  if (bench.armed?.person !== undefined) return join(bench.armed.person, source.key);
  if (clip?.people.length === 1) {
    const { index } = clip.people[0];
    return clip.joins.get(index) === source.key ? unjoin(index) : join(index, source.key);
  }
  const isSecond = bench.armed?.source === source.key;
  bench.armed = isSecond || !clip?.people.length ? null : { source: source.key };
  if (bench.armed) announce("Now choose who gets this face.");
  changed();
}

function join(index, key) {
  const all = sources();
  const source = isOnePerson() ? all[0] : all.find((one) => one.key === key);
  bench.current.joins.set(index, source.key);
  rejoined(`Person ${index + 1} gets face ${letter(source.place)}.`);
}

function unjoin(index) {
  bench.current.joins.delete(index);
  rejoined(`Person ${index + 1} stays as they are.`);
}

function rejoined(message) {
  bench.current.isTouched = true;
  bench.armed = null;
  hooks.onjoined();
  announce(message);
  changed();
}

export function renderPatch() {
  const clip = bench.current;
  const all = sources();
  renderList($("people"), clip?.people ?? [], (person) => `${clip.key} ${person.index}`, makePerson, (row, person) => {
    const source = sourceOf(clip, person.index, all);
    const fate = source ? `gets face ${letter(source.place)}` : "stays as they are";
    paint(row.firstChild, source, bench.armed?.person === person.index, `Person ${person.index + 1} in the clip, ${fate}`);
  });
  const faceless = pictures.filter((picture) => !picture.faces.length).map((picture) => ({ key: `${picture.key} none`, picture }));
  renderList($("sources"), [...all, ...faceless], (source) => source.key, makeSource, (row, source) => {
    row.classList.toggle("wrong", Boolean(source.picture.problem));
    if (source.face) paint(row.firstChild, source, bench.armed?.source === source.key, `New face ${letter(source.place)}, from ${source.picture.name}`);
    else setText(row.querySelector(".note"), source.picture.problem || "Looking for faces…");
  });
  showMessage($("people-state"), peopleState(clip));
  showMessage($("join-hint"), joinHint(clip, all));
  show($("one-person-row"), pictures.length > 1);
  show($("add-face"), pictures.length < MOST_PICTURES);
  $("patch").classList.toggle("picking", bench.armed?.person !== undefined);
  $("patch").classList.toggle("giving", bench.armed?.source !== undefined);
  requestAnimationFrame(drawWires);
}

function peopleState(clip) {
  if (!clip) return "Faces appear here as soon as there is a clip.";
  if (clip.problem) return clip.problem;
  if (clip.isLooking && !clip.people.length) return "Looking for faces…";
  if (clip.lookProblem) return clip.lookProblem;
  if (clip.people.length || clip.foundAt === null) return "";
  return clip.isPicture ? "No face was found in this picture." : "No face here. Move the time line to a frame with a face.";
}

function joinHint(clip, all) {
  if (bench.armed) return bench.armed.person !== undefined ? "Now click the new face." : "Now click who gets it.";
  if (!clip?.people.length || all.length < 2 || isOnePerson()) return "";
  return "Click a face in the clip, then the face it gets.";
}

function paint(button, source, isArmed, label) {
  button.dataset.colour = source ? String(source.place % 8) : "";
  button.setAttribute("aria-pressed", String(isArmed));
  button.setAttribute("aria-label", label);
  setText(button.querySelector(".badge"), source ? letter(source.place) : "");
}

function faceButton(face, onclick) {
  return h("button", { type: "button", class: "face", onclick }, h("img", { src: face.thumbnail, alt: "" }), h("span", { class: "badge" }));
}

const makePerson = (person) => h("li", {}, faceButton(person, () => clickPerson(person)));

function makeSource(source) {
  const remove = iconButton("close", `Remove ${source.picture.name}`, () => hooks.onremove(source.picture), "icon-button remove");
  if (source.face) return h("li", {}, faceButton(source.face, () => clickSource(source)), remove);
  const picture = h("img", { src: source.picture.url, alt: "" });
  picture.addEventListener("error", () => show(picture, false));
  return h("li", { class: "pending" }, picture, h("span", { class: "note" }), remove);
}

/** Draw a line from each face in the clip to the one it gets. */
function drawWires() {
  const origin = $("wires").getBoundingClientRect();
  const at = (button, isRight) => {
    const box = button.getBoundingClientRect();
    return [(isRight ? box.right : box.left) - origin.left, box.top + box.height / 2 - origin.top];
  };
  const buttons = (id) => new Map([...$(id).children].map((row) => [row.dataset.key, row.querySelector("button.face")]));
  const [people, faces] = [buttons("people"), buttons("sources")];
  const isMirrored = getComputedStyle($("patch")).direction === "rtl";
  const wires = [...(bench.current?.joins ?? [])].map(([index, key]) => {
    const [from, to] = [people.get(`${bench.current.key} ${index}`), faces.get(key)];
    if (!from || !to) return null;
    const [[x1, y1], [x2, y2]] = [at(from, !isMirrored), at(to, isMirrored)];
    const bend = (x2 - x1) / 2;
    return svgPath({ d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`, "data-colour": to.dataset.colour });
  });
  $("wires").replaceChildren(...wires.filter(Boolean));
}

/** Wire it up; `onjoined()` is told when a join changed, `onremove(picture)` takes a picture away. */
export function preparePatch(given) {
  hooks = given;
  new ResizeObserver(drawWires).observe($("patch"));
}
