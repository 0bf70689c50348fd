package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"
	pb "textmatch.dev/go/textmatch/v1"
)

const (
	batchDocuments = 200
	batchBytes     = 1 << 20
	// Requests that are sent and not answered. A full queue of the matcher slows the sender down.
	window = 4
	// Deadline of one stream. Longer imports continue on the next stream.
	streamTime = 5 * time.Minute
	// How long Ingest repeats requests while nothing is answered.
	patience    = 2 * time.Minute
	pollingTime = 200 * time.Millisecond
)

// All replicas of the address are used in turn. Calls that got no answer are repeated by gRPC itself, except streams.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [
      {"service": "textmatch.v1.MatcherService", "method": "Match"},
      {"service": "textmatch.v1.MatcherService", "method": "GetIngestStatus"}
    ],
    "retryPolicy": {
      "maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

// Options say how to reach a matcher. Only the address is needed.
type Options struct {
	Address    string // "host:port", or "dns:///name:port" for replicas
	Collection string // empty: "default"
	APIKey     string
	CA         string // PEM file, or "system"; empty: no TLS
	Cert, Key  string // PEM files, for servers that ask for a client certificate
}

// Client calls one matcher, or its replicas. Goroutines may share it.
type Client struct {
	connection *grpc.ClientConn
	matcher    pb.MatcherServiceClient
	collection string
}

// Dial returns a client, which connects with its first call.
func Dial(options Options) (*Client, error) {
	transport, err := transportCredentials(options)
	if err != nil {
		return nil, err
	}
	dialOptions := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	}
	if options.APIKey != "" {
		dialOptions = append(dialOptions, grpc.WithPerRPCCredentials(apiKey(options.APIKey)))
	}
	connection, err := grpc.NewClient(options.Address, dialOptions...)
	if err != nil {
		return nil, err
	}
	return &Client{connection, pb.NewMatcherServiceClient(connection), options.Collection}, nil
}

// Close ends the connection and its running calls.
func (c *Client) Close() error { return c.connection.Close() }

// Match returns the best matches of a text, highest score first. The context should have a deadline: the matcher then
// answers in time, if need be with a degraded answer. A refused call is repeated once its delay has passed.
func (c *Client) Match(ctx context.Context, query string, options *pb.MatchOptions) (*pb.MatchResponse, error) {
	request := &pb.MatchRequest{Query: query, Options: options, Collection: c.collection}
	for {
		response, err := c.matcher.Match(ctx, request)
		if err == nil {
			return response, nil
		}
		problem := ProblemOf(err)
		if problem.RetryDelay == 0 || !wait(ctx, problem.RetryDelay) {
			return nil, problem
		}
	}
}

// Ingest stores documents and calls report with the result of each, in order. A rejected document does not affect the
// others. Requests that get no answer are sent again on a new stream, with the same request id: the matcher then gives
// their documents the versions of the first try.
//
// next returns the documents one after the other, and then io.EOF.
func (c *Client) Ingest(
	ctx context.Context, next func() (*pb.Document, error), report func(*pb.IngestResult),
) error {
	requests := &requestQueue{next: next, collection: c.collection}
	lastAnswer := time.Now()
	for {
		err := c.ingestStream(ctx, requests, func(response *pb.IngestDocumentsResponse) {
			lastAnswer = time.Now()
			for _, result := range response.Results {
				report(result)
			}
		})
		if err == nil || requests.err != nil {
			return requests.err
		}
		problem := ProblemOf(err)
		if !problem.IsTransient() || time.Since(lastAnswer) > patience || !wait(ctx, problem.RetryDelay+pollingTime) {
			return problem
		}
	}
}

// ingestStream sends the requests over one stream. If it fails, those without an answer are back in the queue.
//
// One goroutine sends and another one receives. A single one could wait forever: the matcher reads no further request
// while it cannot write its answers.
func (c *Client) ingestStream(
	ctx context.Context, requests *requestQueue, answered func(*pb.IngestDocumentsResponse),
) error {
	ctx, cancel := context.WithTimeout(ctx, streamTime)
	defer cancel()
	stream, err := c.matcher.IngestDocuments(ctx)
	if err != nil {
		return err
	}
	sent := make(chan *pb.IngestDocumentsRequest, window)
	go func() {
		defer close(sent)
		for request := requests.take(); request != nil; request = requests.take() {
			sent <- request // waits while the window is full
			if stream.Send(request) != nil {
				return // Recv returns the error
			}
		}
		_ = stream.CloseSend()
	}()
	for {
		response, err := stream.Recv()
		if err != nil {
			cancel()
			var unanswered []*pb.IngestDocumentsRequest
			for request := range sent {
				unanswered = append(unanswered, request)
			}
			requests.again = append(unanswered, requests.again...)
			if errors.Is(err, io.EOF) && len(unanswered) == 0 {
				return nil
			}
			return err
		}
		<-sent
		answered(response)
	}
}

// WaitUntilSearchable returns when the queue of the collection is empty.
func (c *Client) WaitUntilSearchable(ctx context.Context) error {
	for {
		status, err := c.matcher.GetIngestStatus(ctx, &pb.GetIngestStatusRequest{Collection: c.collection})
		if err != nil {
			return ProblemOf(err)
		}
		if status.QueuedCount == 0 {
			return nil
		}
		if !wait(ctx, pollingTime) {
			return ctx.Err()
		}
	}
}

// requestQueue makes requests of documents. Requests that were sent in vain come first.
type requestQueue struct {
	next       func() (*pb.Document, error)
	collection string
	again      []*pb.IngestDocumentsRequest
	waiting    *pb.Document // does not fit into the last request
	err        error        // of next
	isAtEnd    bool
}

// take returns the next request, and nil at the end.
func (q *requestQueue) take() *pb.IngestDocumentsRequest {
	if len(q.again) > 0 {
		request := q.again[0]
		q.again = q.again[1:]
		return request
	}
	request := &pb.IngestDocumentsRequest{Collection: q.collection, RequestId: uuid.NewString()}
	for size := 0; len(request.Documents) < batchDocuments; {
		document := q.document()
		if document == nil {
			break
		}
		size += proto.Size(document)
		if size > batchBytes && len(request.Documents) > 0 {
			q.waiting = document
			break
		}
		request.Documents = append(request.Documents, document)
	}
	if len(request.Documents) == 0 {
		return nil
	}
	return request
}

func (q *requestQueue) document() *pb.Document {
	if document := q.waiting; document != nil {
		q.waiting = nil
		return document
	}
	if q.isAtEnd {
		return nil
	}
	document, err := q.next()
	if err != nil {
		q.isAtEnd = true
		if !errors.Is(err, io.EOF) {
			q.err = err
		}
		return nil
	}
	return document
}

// apiKey adds the key to every call.
type apiKey string

func (k apiKey) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(k)}, nil
}

// RequireTransportSecurity is false for tests on one machine. Use TLS on a network.
func (k apiKey) RequireTransportSecurity() bool { return false }

func transportCredentials(options Options) (credentials.TransportCredentials, error) {
	if options.CA == "" {
		return insecure.NewCredentials(), nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if options.CA != "system" {
		pem, err := os.ReadFile(options.CA)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s contains no certificate", options.CA)
		}
	}
	if options.Cert != "" {
		// Read for each connection, so renewed certificates need no restart.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			certificate, err := tls.LoadX509KeyPair(options.Cert, options.Key)
			return &certificate, err
		}
	}
	return credentials.NewTLS(config), nil
}

// wait returns false at once if the context would end before.
func wait(ctx context.Context, delay time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= delay {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(delay):
		return true
	}
}
