package dev.textmatch.example;

import com.google.protobuf.Message;
import dev.textmatch.v1.GetIngestStatusRequest;
import dev.textmatch.v1.GetIngestStatusResponse;
import dev.textmatch.v1.IngestDocumentsRequest;
import dev.textmatch.v1.IngestDocumentsResponse;
import dev.textmatch.v1.MatchRequest;
import dev.textmatch.v1.MatchResponse;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.protobuf.ProtoUtils;

/**
 * The methods of MatcherService that this client calls.
 *
 * <p>They need no plugin of protoc, which exists as a native program only. With protoc-gen-grpc-java, they are in
 * MatcherServiceGrpc.
 */
final class MatcherCalls {
  static final String SERVICE = "textmatch.v1.MatcherService";

  static final MethodDescriptor<MatchRequest, MatchResponse> MATCH =
      method(MethodType.UNARY, "Match", MatchRequest.getDefaultInstance(), MatchResponse.getDefaultInstance());

  static final MethodDescriptor<IngestDocumentsRequest, IngestDocumentsResponse> INGEST_DOCUMENTS =
      method(
          MethodType.BIDI_STREAMING,
          "IngestDocuments",
          IngestDocumentsRequest.getDefaultInstance(),
          IngestDocumentsResponse.getDefaultInstance());

  static final MethodDescriptor<GetIngestStatusRequest, GetIngestStatusResponse> GET_INGEST_STATUS =
      method(
          MethodType.UNARY,
          "GetIngestStatus",
          GetIngestStatusRequest.getDefaultInstance(),
          GetIngestStatusResponse.getDefaultInstance());

  private MatcherCalls() {}

  private static <A extends Message, B extends Message> MethodDescriptor<A, B> method(
      MethodType type, String name, A request, B response) {
    return MethodDescriptor.newBuilder(ProtoUtils.marshaller(request), ProtoUtils.marshaller(response))
        .setType(type)
        .setFullMethodName(MethodDescriptor.generateFullMethodName(SERVICE, name))
        .build();
  }
}
