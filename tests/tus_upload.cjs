// Uploads a file with tus-js-client as it is published, and goes on with what an earlier call began:
// node tus_upload.cjs FILE ENDPOINT STATE [API_KEY]. The end is printed: the address of the upload.
"use strict";
const fs = require("fs");
const tus = require("tus-js-client");

const [file, endpoint, state, key] = process.argv.slice(2);
const upload = new tus.Upload(fs.createReadStream(file), {
  endpoint,
  headers: key ? { "X-API-Key": key } : {},
  metadata: { filename: "My clip ünder way.mp4" },
  urlStorage: new tus.FileUrlStorage(state),
  onSuccess() {
    console.log(upload.url);
  },
  onError(error) {
    console.error(String(error));
    process.exit(1);
  },
});
upload.findPreviousUploads().then((previous) => {
  if (previous.length > 0) upload.resumeFromPreviousUpload(previous[0]);
  upload.start();
});
