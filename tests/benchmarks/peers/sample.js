// What the vendor's documentation shows for Express, in its manner: verifies, parses, stores nothing.
const crypto = require("node:crypto");
const express = require("express");

const app = express();
app.post("/hooks/reader", express.raw({ type: "application/json" }), (request, response) => {
  const timestamp = request.get("x-reader-timestamp");
  const expected =
    "sha256=" + crypto.createHmac("sha256", process.env.READER_WEBHOOK_SECRET).update(`${timestamp}.${request.body}`).digest("hex");
  const given = Buffer.from(request.get("x-reader-signature") ?? "");
  if (given.length !== expected.length || !crypto.timingSafeEqual(given, Buffer.from(expected))) {
    return response.status(401).json({ error: "Invalid signature" });
  }
  if (Date.now() / 1000 - Number(timestamp) > 300) return response.status(401).json({ error: "Timestamp too old" });
  response.json({ received: true, jobId: JSON.parse(request.body).jobId });
});
app.listen(Number(process.argv[2]), "127.0.0.1");
