// Faces looked for, in clips and in pictures.

import { call, callWithJson } from "./api.js";
import { announce } from "./dom.js";
import { whereabouts } from "./request.js";
import { frameOnStage } from "./stage.js";
import { changed, joinAll, setDuration } from "./state.js";
import { withUploads } from "./tus.js";
import { plural } from "./words.js";

const PLACES = [0.25, 0.5, 0.75]; // shares of a clip, looked at where its first frame has no face
const UNFIT = [404, 415, 422]; // statuses that tell of the file, not of the service

const uploadsOf = (source) => (source.upload ? [source.upload] : []);

async function ask(clip, at) {
  if (clip.upload && !clip.upload.isDone && !clip.isPicture) {
    const body = new FormData(); // the frame on the stage: nobody waits for the whole clip
    body.append("image", await frameOnStage(), "frame.jpg");
    return call("faces", { method: "POST", body });
  }
  const [name, value] = await whereabouts(clip, clip.isPicture && !clip.job ? "image" : "video");
  const role = name === "from_job" ? { role: "video" } : {};
  return callWithJson("faces", "POST", { [name]: value, ...role, ...(clip.isPicture ? {} : { at }) });
}

/** Look for the faces in a clip's frame: the newest look counts. */
export async function look(clip, at = clip.at, further = PLACES) {
  if (clip.isGone || clip.problem) return;
  const turn = (clip.looks += 1);
  clip.isLooking = true;
  changed();
  let found = null;
  try {
    found = await withUploads(uploadsOf(clip), () => ask(clip, at));
    clip.lookProblem = null;
  } catch (error) {
    if (turn !== clip.looks || error.name === "AbortError") return;
    if (UNFIT.includes(error.status) && error.code !== "unknown_upload") clip.problem = error.message;
    else clip.lookProblem = error.message;
  }
  if (turn !== clip.looks || clip.isGone) return;
  clip.isLooking = false;
  if (found) learn(clip, found, at);
  changed();
  const isToGoOn = found && !clip.people.length && further.length && clip.duration && !clip.isPicture;
  if (isToGoOn) look(clip, further[0] * clip.duration, further.slice(1));
}

function learn(clip, found, at) {
  if (found.duration) {
    if (!clip.duration) setDuration(clip, found.duration);
    clip.frameRate = found.frame_rate || clip.frameRate;
  }
  [clip.width, clip.height] = [found.width, found.height];
  [clip.found, clip.foundAt] = [found.faces, at];
  if (found.faces.length <= clip.people.length) return;
  clip.people = found.faces;
  joinAll();
}

export async function lookAtPicture(picture) {
  try {
    const found = await withUploads(uploadsOf(picture), async () => {
      const [name, value] = await whereabouts(picture, "image");
      return callWithJson("faces", "POST", { [name]: value });
    });
    picture.faces = found.faces;
    if (!picture.faces.length) picture.problem = "No face was found in this picture.";
    announce(plural(picture.faces.length, `One face found in ${picture.name}.`, `# faces found in ${picture.name}.`));
  } catch (error) {
    if (error.name === "AbortError") return;
    picture.problem = error.message;
  }
  picture.isLooking = false;
  joinAll();
  changed();
}
