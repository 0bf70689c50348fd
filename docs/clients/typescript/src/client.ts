import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

import { ChannelCredentials, credentials, Metadata, ServiceError } from "@grpc/grpc-js";

import {
  Document,
  GetIngestStatusRequest,
  IngestDocumentsRequest,
  IngestDocumentsResponse,
  IngestResult,
  MatcherServiceClient,
  MatchOptions,
  MatchRequest,
  MatchResponse,
} from "../gen/textmatch/v1/matcher_service.js";
import { Problem } from "./problem.js";

const BATCH_DOCUMENTS = 200;
const BATCH_BYTES = 1 << 20;
/** Requests that are sent and not answered. A full queue of the matcher slows the sender down. */
const WINDOW = 4;
/** Deadline of one stream. Longer imports continue on the next stream. */
const STREAM_MS = 300_000;
/** How long `ingest` repeats requests while nothing is answered. */
const PATIENCE_MS = 120_000;
const POLLING_MS = 200;
const STATUS_MS = 10_000;

/** All replicas of the address are used in turn. Calls that got no answer are repeated by gRPC itself, except streams. */
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [
        { service: "textmatch.v1.MatcherService", method: "Match" },
        { service: "textmatch.v1.MatcherService", method: "GetIngestStatus" },
      ],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.1s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};

export interface Options {
  /** "host:port", or "dns:///name:port" for replicas. */
  address: string;
  /** Without it: "default". */
  collection?: string;
  apiKey?: string;
  /** PEM file, or "system"; without it: no TLS. */
  ca?: string;
  /** PEM files, for servers that ask for a client certificate. */
  cert?: string;
  key?: string;
}

/** Calls one matcher, or its replicas. Connects with the first call. */
export class TextMatchClient {
  private readonly matcher: MatcherServiceClient;
  private readonly metadata = new Metadata();
  private readonly collection: string;

  constructor(options: Options) {
    this.matcher = new MatcherServiceClient(options.address, channelCredentials(options), {
      "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
      "grpc.keepalive_time_ms": 30_000,
      "grpc.keepalive_timeout_ms": 10_000,
    });
    this.collection = options.collection ?? "";
    if (options.apiKey) {
      this.metadata.set("authorization", `Bearer ${options.apiKey}`);
    }
  }

  close(): void {
    this.matcher.close();
  }

  /**
   * The best matches of a text, highest score first. The matcher answers within the timeout, if need be with a degraded
   * answer. A refused call is repeated once its delay has passed.
   */
  async match(query: string, options: Partial<MatchOptions>, timeoutMs: number): Promise<MatchResponse> {
    const request = MatchRequest.create({ query, options, collection: this.collection });
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      try {
        return await answer((done) => this.matcher.match(request, this.metadata, { deadline }, done));
      } catch (error) {
        const problem = Problem.of(error as ServiceError);
        if (problem.retryDelayMs === 0 || Date.now() + problem.retryDelayMs >= deadline) {
          throw problem;
        }
        await sleep(problem.retryDelayMs);
      }
    }
  }

  /**
   * Stores documents. A rejected document does not affect the others. Requests that get no answer are sent again on a
   * new stream, with the same request id: the matcher then gives their documents the versions of the first try.
   *
   * @param report gets the result of each document, in order
   */
  async ingest(
    documents: AsyncIterable<Document> | Iterable<Document>,
    report: (result: IngestResult) => void,
  ): Promise<void> {
    const requests = new RequestQueue(documents, this.collection);
    let lastAnswer = Date.now();
    for (;;) {
      try {
        await this.ingestStream(requests, (response) => {
          lastAnswer = Date.now();
          response.results.forEach(report);
        });
        return;
      } catch (error) {
        if (!(error instanceof Problem && error.isTransient) || Date.now() - lastAnswer > PATIENCE_MS) {
          throw error;
        }
        await sleep(error.retryDelayMs + POLLING_MS);
      }
    }
  }

  /** Returns when the queue of the collection is empty. */
  async waitUntilSearchable(): Promise<void> {
    const request = GetIngestStatusRequest.create({ collection: this.collection });
    for (;;) {
      const deadline = Date.now() + STATUS_MS;
      try {
        const status = await answer<{ queuedCount: number }>((done) =>
          this.matcher.getIngestStatus(request, this.metadata, { deadline }, done),
        );
        if (status.queuedCount === 0) {
          return;
        }
      } catch (error) {
        throw Problem.of(error as ServiceError);
      }
      await sleep(POLLING_MS);
    }
  }

  /** Sends requests over one stream. If it fails, those without an answer are back in the queue. */
  private async ingestStream(
    requests: RequestQueue,
    answered: (response: IngestDocumentsResponse) => void,
  ): Promise<void> {
    const call = this.matcher.ingestDocuments(this.metadata, { deadline: Date.now() + STREAM_MS });
    const sent: IngestDocumentsRequest[] = [];
    const ended = new AbortController();
    const send = async (): Promise<void> => {
      while (!ended.signal.aborted) {
        const request = await requests.take();
        if (request === undefined) {
          call.end();
          return;
        }
        sent.push(request);
        if (!call.write(request)) {
          await once(call, "drain", { signal: ended.signal });
        }
        while (sent.length >= WINDOW) {
          await once(call, "answered", { signal: ended.signal });
        }
      }
    };
    const sending = send().catch((error: Error) => {
      if (!ended.signal.aborted) {
        call.destroy(error); // of the caller's documents
      }
    });
    try {
      for await (const response of call as AsyncIterable<IngestDocumentsResponse>) {
        sent.shift();
        answered(response);
        call.emit("answered");
      }
    } catch (error) {
      throw "code" in (error as object) ? Problem.of(error as ServiceError) : error;
    } finally {
      ended.abort();
      await sending;
      requests.putBack(sent);
    }
  }
}

/** Makes requests of documents. Requests that were sent in vain come first. */
class RequestQueue {
  private readonly documents: AsyncIterator<Document> | Iterator<Document>;
  private again: IngestDocumentsRequest[] = [];
  private waiting: Document | undefined; // does not fit into the last request

  constructor(
    documents: AsyncIterable<Document> | Iterable<Document>,
    private readonly collection: string,
  ) {
    this.documents =
      Symbol.asyncIterator in documents ? documents[Symbol.asyncIterator]() : documents[Symbol.iterator]();
  }

  putBack(requests: IngestDocumentsRequest[]): void {
    this.again = [...requests, ...this.again];
  }

  /** The next request; undefined at the end. */
  async take(): Promise<IngestDocumentsRequest | undefined> {
    if (this.again.length > 0) {
      return this.again.shift();
    }
    const documents: Document[] = [];
    for (let size = 0; documents.length < BATCH_DOCUMENTS; ) {
      const document = this.waiting ?? (await this.documents.next()).value;
      this.waiting = undefined;
      if (document === undefined) {
        break;
      }
      size += Document.encode(document).finish().length;
      if (size > BATCH_BYTES && documents.length > 0) {
        this.waiting = document;
        break;
      }
      documents.push(document);
    }
    const made = { documents, collection: this.collection, requestId: randomUUID() };
    return documents.length > 0 ? made : undefined;
  }
}

function channelCredentials(options: Options): ChannelCredentials {
  if (!options.ca) {
    return credentials.createInsecure();
  }
  const roots = options.ca === "system" ? null : readFileSync(options.ca);
  if (!options.cert || !options.key) {
    return credentials.createSsl(roots);
  }
  return credentials.createSsl(roots, readFileSync(options.key), readFileSync(options.cert));
}

/** The answer of a call that takes a callback. */
function answer<Response>(
  start: (done: (error: ServiceError | null, response: Response) => void) => unknown,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    start((error, response) => (error ? reject(error) : resolve(response)));
  });
}
