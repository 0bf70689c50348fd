package dev.textmatch.example;

import dev.textmatch.v1.Document;
import dev.textmatch.v1.GetIngestStatusRequest;
import dev.textmatch.v1.IngestDocumentsRequest;
import dev.textmatch.v1.IngestDocumentsResponse;
import dev.textmatch.v1.IngestResult;
import dev.textmatch.v1.MatchOptions;
import dev.textmatch.v1.MatchRequest;
import dev.textmatch.v1.MatchResponse;
import dev.textmatch.v1.MatcherServiceGrpc;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/** Calls one matcher, or its replicas. Threads may share it. */
public final class TextMatchClient implements AutoCloseable {
  private static final int BATCH_DOCUMENTS = 200;
  private static final int BATCH_BYTES = 1 << 20;
  /** Requests that are sent and not answered. A full queue of the matcher slows the sender down. */
  private static final int WINDOW = 4;
  /** Deadline of one stream. Longer imports continue on the next stream. */
  private static final Duration STREAM_TIME = Duration.ofMinutes(5);
  /** How long ingest repeats requests while nothing is answered. */
  private static final Duration PATIENCE = Duration.ofMinutes(2);
  private static final Duration POLLING_TIME = Duration.ofMillis(200);
  private static final Duration STATUS_TIME = Duration.ofSeconds(10);

  /**
   * All replicas of the address are used in turn. Calls that got no answer are repeated by gRPC itself, except streams.
   */
  private static final Map<String, ?> SERVICE_CONFIG =
      Map.of(
          "loadBalancingConfig", List.of(Map.of("round_robin", Map.of())),
          "methodConfig",
              List.of(
                  Map.of(
                      "name",
                          List.of(
                              Map.of("service", MatcherServiceGrpc.SERVICE_NAME, "method", "Match"),
                              Map.of("service", MatcherServiceGrpc.SERVICE_NAME, "method", "GetIngestStatus")),
                      "retryPolicy",
                          Map.of(
                              "maxAttempts", 4.0,
                              "initialBackoff", "0.1s",
                              "maxBackoff", "2s",
                              "backoffMultiplier", 2.0,
                              "retryableStatusCodes", List.of("UNAVAILABLE")))));

  /**
   * How to reach a matcher.
   *
   * @param address "host:port", or "dns:///name:port" for replicas
   * @param collection empty: "default"
   * @param apiKey empty: none
   * @param ca PEM file, or "system"; empty: no TLS
   * @param cert PEM file, for servers that ask for a client certificate; else empty
   * @param key PEM file
   */
  public record Options(String address, String collection, String apiKey, String ca, String cert, String key) {}

  private final ManagedChannel channel;
  private final String collection;
  private final MatcherServiceGrpc.MatcherServiceBlockingStub blocking;
  private final MatcherServiceGrpc.MatcherServiceStub streaming;

  /** Connects with the first call. */
  public TextMatchClient(Options options) throws IOException {
    var builder =
        Grpc.newChannelBuilder(options.address(), credentials(options))
            .defaultServiceConfig(SERVICE_CONFIG)
            .enableRetry()
            .keepAliveTime(30, TimeUnit.SECONDS)
            .keepAliveTimeout(10, TimeUnit.SECONDS);
    if (!options.apiKey().isEmpty()) {
      var headers = new Metadata();
      var name = Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
      headers.put(name, "Bearer " + options.apiKey());
      builder.intercept(MetadataUtils.newAttachHeadersInterceptor(headers));
    }
    channel = builder.build();
    collection = options.collection();
    blocking = MatcherServiceGrpc.newBlockingStub(channel);
    streaming = MatcherServiceGrpc.newStub(channel);
  }

  /**
   * The best matches of a text, highest score first. The matcher answers within the timeout, if need be with a degraded
   * answer. A refused call is repeated once its delay has passed.
   */
  public MatchResponse match(String query, MatchOptions options, Duration timeout) throws InterruptedException {
    var request =
        MatchRequest.newBuilder().setQuery(query).setOptions(options).setCollection(collection).build();
    var deadline = Instant.now().plus(timeout);
    while (true) {
      var left = Duration.between(Instant.now(), deadline);
      try {
        return blocking.withDeadlineAfter(left.toMillis(), TimeUnit.MILLISECONDS).match(request);
      } catch (StatusRuntimeException error) {
        var problem = TextMatchException.of(error);
        if (problem.retryDelay().isZero() || Instant.now().plus(problem.retryDelay()).isAfter(deadline)) {
          throw problem;
        }
        Thread.sleep(problem.retryDelay().toMillis());
      }
    }
  }

  /**
   * Stores documents. A rejected document does not affect the others. Requests that get no answer are sent again on a
   * new stream, with the same request id: the matcher then gives their documents the versions of the first try.
   *
   * @param report gets the result of each document, in order
   */
  public void ingest(Iterator<Document> documents, Consumer<IngestResult> report) throws InterruptedException {
    var requests = new RequestQueue(documents);
    var lastAnswer = new Instant[] {Instant.now()};
    while (true) {
      var stream =
          new IngestStream(
              requests,
              response -> {
                lastAnswer[0] = Instant.now();
                response.getResultsList().forEach(report);
              });
      try {
        stream.run();
        return;
      } catch (TextMatchException problem) {
        if (!problem.isTransient() || lastAnswer[0].plus(PATIENCE).isBefore(Instant.now())) {
          throw problem;
        }
        Thread.sleep(problem.retryDelay().plus(POLLING_TIME).toMillis());
      }
    }
  }

  /** Returns when the queue of the collection is empty. */
  public void waitUntilSearchable() throws InterruptedException {
    var request = GetIngestStatusRequest.newBuilder().setCollection(collection).build();
    while (true) {
      try {
        var stub = blocking.withDeadlineAfter(STATUS_TIME.toMillis(), TimeUnit.MILLISECONDS);
        if (stub.getIngestStatus(request).getQueuedCount() == 0) {
          return;
        }
      } catch (StatusRuntimeException error) {
        throw TextMatchException.of(error);
      }
      Thread.sleep(POLLING_TIME.toMillis());
    }
  }

  @Override
  public void close() {
    channel.shutdownNow();
  }

  private static ChannelCredentials credentials(Options options) throws IOException {
    if (options.ca().isEmpty()) {
      return InsecureChannelCredentials.create();
    }
    var tls = TlsChannelCredentials.newBuilder();
    if (!options.ca().equals("system")) {
      tls.trustManager(new File(options.ca()));
    }
    if (!options.cert().isEmpty()) {
      tls.keyManager(new File(options.cert()), new File(options.key()));
    }
    return tls.build();
  }

  /**
   * Sends requests over one stream. If it fails, those without an answer are back in the queue.
   *
   * <p>It sends whenever gRPC is ready for a message and the window has room. gRPC makes its calls one after the other.
   */
  private final class IngestStream
      implements ClientResponseObserver<IngestDocumentsRequest, IngestDocumentsResponse> {
    private final RequestQueue requests;
    private final Consumer<IngestDocumentsResponse> answered;
    private final Deque<IngestDocumentsRequest> sent = new ArrayDeque<>();
    private final CompletableFuture<Void> end = new CompletableFuture<>();
    private ClientCallStreamObserver<IngestDocumentsRequest> call;
    private boolean isHalfClosed;

    IngestStream(RequestQueue requests, Consumer<IngestDocumentsResponse> answered) {
      this.requests = requests;
      this.answered = answered;
    }

    void run() {
      streaming.withDeadlineAfter(STREAM_TIME.toMillis(), TimeUnit.MILLISECONDS).ingestDocuments(this);
      try {
        end.join();
      } catch (CompletionException error) {
        if (error.getCause() instanceof StatusRuntimeException refused) {
          throw TextMatchException.of(refused);
        }
        throw error.getCause() instanceof RuntimeException ofCaller ? ofCaller : error;
      }
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<IngestDocumentsRequest> call) {
      this.call = call;
      call.setOnReadyHandler(this::send);
    }

    private void send() {
      while (!isHalfClosed && sent.size() < WINDOW && call.isReady()) {
        try {
          if (requests.hasNext()) {
            sent.add(requests.next());
            call.onNext(sent.getLast());
          } else {
            isHalfClosed = true;
            call.onCompleted();
          }
        } catch (RuntimeException error) { // of the caller's documents
          isHalfClosed = true;
          call.cancel("the documents cannot be read", error);
          end.completeExceptionally(error);
        }
      }
    }

    @Override
    public void onNext(IngestDocumentsResponse response) {
      sent.remove();
      answered.accept(response);
      send();
    }

    @Override
    public void onError(Throwable error) {
      requests.putBack(sent);
      end.completeExceptionally(error);
    }

    @Override
    public void onCompleted() {
      end.complete(null);
    }
  }

  /** Makes requests of documents. Requests that were sent in vain come first. */
  private final class RequestQueue implements Iterator<IngestDocumentsRequest> {
    private final Iterator<Document> documents;
    private final Deque<IngestDocumentsRequest> again = new ArrayDeque<>();
    private Document waiting; // does not fit into the last request

    RequestQueue(Iterator<Document> documents) {
      this.documents = documents;
    }

    void putBack(Deque<IngestDocumentsRequest> unanswered) {
      unanswered.descendingIterator().forEachRemaining(again::addFirst);
    }

    @Override
    public boolean hasNext() {
      return !again.isEmpty() || waiting != null || documents.hasNext();
    }

    @Override
    public IngestDocumentsRequest next() {
      if (!again.isEmpty()) {
        return again.remove();
      }
      var request =
          IngestDocumentsRequest.newBuilder()
              .setCollection(collection)
              .setRequestId(UUID.randomUUID().toString());
      var size = 0;
      while (request.getDocumentsCount() < BATCH_DOCUMENTS && (waiting != null || documents.hasNext())) {
        var document = waiting != null ? waiting : documents.next();
        waiting = null;
        size += document.getSerializedSize();
        if (size > BATCH_BYTES && request.getDocumentsCount() > 0) {
          waiting = document;
          break;
        }
        request.addDocuments(document);
      }
      return request.build();
    }
  }
}
