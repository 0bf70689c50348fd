// Calls of the gateway. The key stays in this module's memory.

const UPLOAD_TRIES = 5;
const NDJSON = "application/x-ndjson";

let key = "";

/** The problem that the gateway answered, or that it did not answer (status 0). */
export class CallFailed extends Error {
  constructor(status, problem) {
    super(problem.detail ?? "");
    this.status = status;
    this.requestId = problem.request_id ?? "";
    this.retryAfterSeconds = problem.retry_after_seconds ?? 1;
  }
}

/** Use this key for all calls from now on. */
export function useKey(value) {
  key = value.trim();
}

/** The JSON answer to a GET, or to a POST where there is a body. */
export async function call(path, body) {
  const answer = await send(path, body === undefined ? {} : post(body));
  return answer.json();
}

/** The answer of JSON lines to a GET. */
export async function lines(path) {
  return parsed((await (await send(path, {})).text()).split("\n"));
}

/** The JSON lines of the answer to a POST, one after another as they come. To stop early is to end the call. */
export async function* stream(path, body, signal) {
  const pieces = (await send(path, { ...post(body), signal })).body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reached(pieces.read());
      rest += decoder.decode(value, { stream: !done });
      const found = rest.split("\n");
      rest = found.pop();
      yield* parsed(found);
      if (done) return;
    }
  } finally {
    await pieces.cancel().catch(() => {});
  }
}

/** The path of a collection, with something after it. */
export function ofCollection(name, rest = "") {
  return `/v1/collections/${encodeURIComponent(name)}${rest}`;
}

/** Store documents, given as JSON lines; returns one result for each. Retries while the servers are busy. */
export async function upload(collection, lines, signal) {
  const request = { method: "POST", headers: { "content-type": NDJSON }, body: lines.join("\n"), signal };
  for (let attempt = 1; ; attempt += 1) {
    try {
      const answer = await send(ofCollection(collection, "/documents"), request);
      return parsed((await answer.text()).split("\n"));
    } catch (error) {
      const isTransient = error instanceof CallFailed && [0, 429, 503].includes(error.status);
      if (!isTransient || attempt === UPLOAD_TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfterSeconds));
    }
  }
}

function parsed(lines) {
  return lines.filter(Boolean).map((line) => JSON.parse(line));
}

function post(body) {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
}

async function send(path, request) {
  const headers = { ...request.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const answer = await reached(fetch(path, { ...request, headers, credentials: "omit", redirect: "error" }));
  if (!answer.ok) throw new CallFailed(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

/** What the network brings, or the problem that it does not. */
async function reached(answer) {
  try {
    return await answer;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallFailed(0, {});
  }
}
