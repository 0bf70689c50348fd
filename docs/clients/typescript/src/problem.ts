import { ServiceError, status } from "@grpc/grpc-js";

import { BadRequest, ErrorInfo, RetryInfo } from "../gen/google/rpc/error_details.js";
import { Status } from "../gen/google/rpc/status.js";

const DETAILS_KEY = "grpc-status-details-bin";
const TRANSIENT = [status.UNAVAILABLE, status.RESOURCE_EXHAUSTED, status.DEADLINE_EXCEEDED, status.ABORTED];

/** What textmatch says about a failed call, or about a rejected document. */
export class Problem extends Error {
  /** "OVERLOADED"; stable, for programs. Empty if the error is not from textmatch. */
  readonly reason: string = "";
  /** 0 if the server asks for no retry. */
  readonly retryDelayMs: number = 0;
  /** What is wrong with the request, item by item. */
  readonly violations: string[] = [];

  private constructor(
    readonly code: status,
    message: string,
    details: Status["details"],
  ) {
    super(message);
    for (const detail of details) {
      switch (detail.typeUrl.split("/").pop()) {
        case "google.rpc.ErrorInfo":
          this.reason = ErrorInfo.decode(detail.value).reason;
          break;
        case "google.rpc.RetryInfo": {
          const delay = RetryInfo.decode(detail.value).retryDelay;
          this.retryDelayMs = delay ? delay.seconds * 1000 + delay.nanos / 1e6 : 0;
          break;
        }
        case "google.rpc.BadRequest":
          this.violations = BadRequest.decode(detail.value).fieldViolations.map(
            (one) => `${one.field}: ${one.reason} ${one.description}`,
          );
          break;
      }
    }
  }

  /** The problem of a failed call. */
  static of(error: ServiceError): Problem {
    const [details] = error.metadata?.get(DETAILS_KEY) ?? [];
    const decoded = details instanceof Buffer ? Status.decode(details).details : [];
    return new Problem(error.code, error.details, decoded);
  }

  /** The problem of a rejected document. */
  static ofStatus(message: Status): Problem {
    return new Problem(message.code, message.message, message.details);
  }

  /** Whether the same call may succeed later. */
  get isTransient(): boolean {
    return TRANSIENT.includes(this.code);
  }

  /** One line: "RESOURCE_EXHAUSTED OVERLOADED: the queue is full (retry after 2 s)". */
  override toString(): string {
    const items = this.violations.length > 0 ? ` [${this.violations.join("; ")}]` : "";
    const delay = this.retryDelayMs > 0 ? ` (retry after ${this.retryDelayMs / 1000} s)` : "";
    return `${status[this.code]} ${this.reason}: ${this.message}${items}${delay}`;
  }
}
