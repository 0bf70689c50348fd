// A small client of textmatch in Go.
//
//	go run . ingest documents.jsonl
//	go run . match --top-k=3 --timeout=0.5 "remove a folder" module=os "year>=2020"
//
// client.go and problem.go are made to be copied; this file is their command line.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	pb "textmatch.dev/go/textmatch/v1"
)

const maxLineBytes = 16 << 20

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 2 {
		return fmt.Errorf("usage: ingest FILE | match [--top-k=N] [--timeout=SECONDS] QUERY [FIELD=VALUE | FIELD>=NUMBER]")
	}
	client, err := Dial(Options{
		Address:    valueOr(os.Getenv("TEXTMATCH_MATCHER_TARGET"), "127.0.0.1:50052"),
		Collection: os.Getenv("TEXTMATCH_COLLECTION"),
		APIKey:     os.Getenv("TEXTMATCH_API_KEY"),
		CA:         os.Getenv("TEXTMATCH_TLS_CA"),
		Cert:       os.Getenv("TEXTMATCH_TLS_CERT"),
		Key:        os.Getenv("TEXTMATCH_TLS_KEY"),
	})
	if err != nil {
		return err
	}
	defer client.Close()
	switch command, rest := arguments[0], arguments[1:]; command {
	case "ingest":
		return ingest(client, rest[0])
	case "match":
		return match(client, rest)
	default:
		return fmt.Errorf("unknown command %q", command)
	}
}

// ingest stores the documents of a file, prints how many were accepted, and waits until they are searchable.
func ingest(client *Client, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, maxLineBytes)
	next := func() (*pb.Document, error) {
		if !lines.Scan() {
			return nil, valueOr(lines.Err(), io.EOF)
		}
		document := &pb.Document{}
		return document, protojson.Unmarshal(lines.Bytes(), document)
	}
	counts := map[string]int{"accepted": 0, "unchanged": 0, "rejected": 0}
	report := func(result *pb.IngestResult) {
		outcome := strings.ToLower(strings.TrimPrefix(result.Outcome.String(), "INGEST_OUTCOME_"))
		counts[outcome]++
		if result.Error != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", result.Id, ProblemOfStatus(result.Error))
		}
	}
	ctx := context.Background()
	if err := client.Ingest(ctx, next, report); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(counts); err != nil {
		return err
	}
	return client.WaitUntilSearchable(ctx)
}

// match prints one JSON line for each match.
func match(client *Client, arguments []string) error {
	flags := flag.NewFlagSet("match", flag.ExitOnError)
	topK := flags.Int("top-k", 10, "number of matches")
	timeout := flags.Float64("timeout", 10, "deadline in seconds")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	filter, err := filterOf(flags.Args()[min(1, flags.NArg()):])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(*timeout*float64(time.Second)))
	defer cancel()
	response, err := client.Match(ctx, flags.Arg(0), &pb.MatchOptions{TopK: int32(*topK), Filter: filter})
	if err != nil {
		return err
	}
	if response.Degraded != pb.DegradedReason_DEGRADED_REASON_UNSPECIFIED {
		fmt.Fprintln(os.Stderr, "degraded:", response.Degraded)
	}
	output := json.NewEncoder(os.Stdout)
	output.SetEscapeHTML(false)
	for _, one := range response.Matches {
		line := map[string]any{
			"id": one.Document.Id, "score": one.Score, "text": one.Document.Text,
			"attributes": one.Document.Attributes.AsMap(),
		}
		if err := output.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

// filterOf makes a filter of conditions that must all hold: module=os, year>=2020.
func filterOf(conditions []string) (*pb.Filter, error) {
	if len(conditions) == 0 {
		return nil, nil
	}
	filter := &pb.Filter{}
	for _, condition := range conditions {
		if field, bound, isRange := strings.Cut(condition, ">="); isRange {
			number, err := strconv.ParseFloat(bound, 64)
			if err != nil {
				return nil, err
			}
			within := &pb.FieldRange{Field: field, Gte: &number}
			filter.Must = append(filter.Must, &pb.Condition{Condition: &pb.Condition_Range{Range: within}})
		} else if field, value, isMatch := strings.Cut(condition, "="); isMatch {
			equals := &pb.FieldMatch{Field: field, Values: []*structpb.Value{structpb.NewStringValue(value)}}
			filter.Must = append(filter.Must, &pb.Condition{Condition: &pb.Condition_Match{Match: equals}})
		} else {
			return nil, fmt.Errorf("%q must be FIELD=VALUE or FIELD>=NUMBER", condition)
		}
	}
	return filter, nil
}

// valueOr returns the fallback if there is no value.
func valueOr[T comparable](value, fallback T) T {
	var nothing T
	if value == nothing {
		return fallback
	}
	return value
}
