// The command line of TextMatchClient.
//
//   npm start -- ingest documents.jsonl
//   npm start -- match --top-k=3 --timeout=0.5 "remove a folder" module=os "year>=2020"

import { createReadStream } from "node:fs";
import { createInterface } from "node:readline/promises";
import { parseArgs } from "node:util";

import {
  Condition,
  DegradedReason,
  degradedReasonToJSON,
  Document,
  Filter,
  IngestOutcome,
} from "../gen/textmatch/v1/matcher_service.js";
import { TextMatchClient } from "./client.js";
import { Problem } from "./problem.js";

const USAGE = "usage: ingest FILE | match [--top-k=N] [--timeout=SECONDS] QUERY [FIELD=VALUE | FIELD>=NUMBER]";

/** Stores the documents of a file, prints how many were accepted, and waits until they are searchable. */
async function ingest(client: TextMatchClient, file: string): Promise<void> {
  const counts = { accepted: 0, unchanged: 0, rejected: 0 };
  await client.ingest(documentsOf(file), (result) => {
    if (result.outcome === IngestOutcome.INGEST_OUTCOME_ACCEPTED) {
      counts.accepted += 1;
    } else if (result.outcome === IngestOutcome.INGEST_OUTCOME_UNCHANGED) {
      counts.unchanged += 1;
    } else {
      counts.rejected += 1;
    }
    if (result.error) {
      console.error(`${result.id}: ${Problem.ofStatus(result.error)}`);
    }
  });
  console.log(JSON.stringify(counts));
  await client.waitUntilSearchable();
}

async function* documentsOf(file: string): AsyncGenerator<Document> {
  for await (const line of createInterface({ input: createReadStream(file) })) {
    yield Document.fromJSON(JSON.parse(line));
  }
}

/** Prints one JSON line for each match. */
async function match(client: TextMatchClient, words: string[], topK: number, timeoutMs: number): Promise<void> {
  const [query = "", ...conditions] = words;
  const filter = conditions.length > 0 ? filterOf(conditions) : undefined;
  const response = await client.match(query, { topK, filter }, timeoutMs);
  if (response.degraded !== DegradedReason.DEGRADED_REASON_UNSPECIFIED) {
    console.error(`degraded: ${degradedReasonToJSON(response.degraded)}`);
  }
  for (const { document, score } of response.matches) {
    const { id, text, attributes } = document ?? {};
    console.log(JSON.stringify({ id, score, text, attributes: attributes ?? {} }));
  }
}

/** A filter of conditions that must all hold: module=os, year>=2020. */
function filterOf(conditions: string[]): Filter {
  return Filter.create({ must: conditions.map(conditionOf) });
}

function conditionOf(condition: string): Condition {
  const [, field, operator, value] = /^(.+?)(>=|=)(.*)$/s.exec(condition) ?? [];
  if (field === undefined || value === undefined) {
    throw new Error(`${condition} must be FIELD=VALUE or FIELD>=NUMBER`);
  }
  return operator === ">="
    ? { condition: { $case: "range", value: { field, gte: Number(value) } } }
    : { condition: { $case: "match", value: { field, values: [value] } } };
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { "top-k": { type: "string", default: "10" }, timeout: { type: "string", default: "10" } },
  });
  const [command, ...rest] = positionals;
  if (rest.length === 0 || (command !== "ingest" && command !== "match")) {
    throw new Error(USAGE);
  }
  const client = new TextMatchClient({
    address: process.env.TEXTMATCH_MATCHER_TARGET ?? "127.0.0.1:50052",
    collection: process.env.TEXTMATCH_COLLECTION,
    apiKey: process.env.TEXTMATCH_API_KEY,
    ca: process.env.TEXTMATCH_TLS_CA,
    cert: process.env.TEXTMATCH_TLS_CERT,
    key: process.env.TEXTMATCH_TLS_KEY,
  });
  try {
    if (command === "ingest") {
      await ingest(client, rest[0]);
    } else {
      await match(client, rest, Number(values["top-k"]), Number(values.timeout) * 1000);
    }
  } finally {
    client.close();
  }
}

main().catch((error: unknown) => {
  console.error(String(error));
  process.exitCode = 1;
});
