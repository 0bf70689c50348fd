package dev.textmatch.example;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.Code;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import com.google.rpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;

/** What textmatch says about a failed call, or about a rejected document. */
public final class TextMatchException extends RuntimeException {
  private static final Set<Code> TRANSIENT =
      Set.of(Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.ABORTED);

  private final Code code;
  private final String reason;
  private final Duration retryDelay;
  private final List<String> violations;

  private TextMatchException(
      Status status, String reason, Duration retryDelay, List<String> violations, Throwable cause) {
    super(status.getMessage(), cause);
    this.code = Code.forNumber(status.getCode());
    this.reason = reason;
    this.retryDelay = retryDelay;
    this.violations = violations;
  }

  /** The problem of a failed call. */
  public static TextMatchException of(StatusRuntimeException error) {
    return of(StatusProto.fromThrowable(error), error);
  }

  /** The problem of a rejected document. */
  public static TextMatchException of(Status status) {
    return of(status, null);
  }

  private static TextMatchException of(Status status, Throwable cause) {
    var reason = "";
    var retryDelay = Duration.ZERO;
    var violations = new ArrayList<String>();
    try {
      for (Any detail : status.getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          reason = detail.unpack(ErrorInfo.class).getReason();
        } else if (detail.is(RetryInfo.class)) {
          var delay = detail.unpack(RetryInfo.class).getRetryDelay();
          retryDelay = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
        } else if (detail.is(BadRequest.class)) {
          for (var one : detail.unpack(BadRequest.class).getFieldViolationsList()) {
            violations.add("%s: %s %s".formatted(one.getField(), one.getReason(), one.getDescription()));
          }
        }
      }
    } catch (InvalidProtocolBufferException error) {
      throw new IllegalStateException(error);
    }
    return new TextMatchException(status, reason, retryDelay, violations, cause);
  }

  public Code code() {
    return code;
  }

  /** "OVERLOADED"; stable, for programs. Empty if the error is not from textmatch. */
  public String reason() {
    return reason;
  }

  /** Zero if the server asks for no retry. */
  public Duration retryDelay() {
    return retryDelay;
  }

  /** What is wrong with the request, item by item. */
  public List<String> violations() {
    return violations;
  }

  /** Whether the same call may succeed later. */
  public boolean isTransient() {
    return TRANSIENT.contains(code);
  }

  /** One line: "RESOURCE_EXHAUSTED OVERLOADED: the queue is full (retry after 2.0 s)". */
  @Override
  public String toString() {
    var line = "%s %s: %s".formatted(code, reason, getMessage());
    if (!violations.isEmpty()) {
      line += " " + violations;
    }
    if (!retryDelay.isZero()) {
      line += " (retry after %.1f s)".formatted(retryDelay.toMillis() / 1000.0);
    }
    return line;
  }
}
