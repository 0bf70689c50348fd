package main

import (
	"fmt"
	"strings"
	"time"

	rpccode "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Problem is what textmatch says about a failed call, or about a rejected document.
type Problem struct {
	Code       codes.Code
	Reason     string // "OVERLOADED"; stable, for programs; empty if the error is not from textmatch
	Message    string // for people
	RetryDelay time.Duration
	Violations []string // what is wrong with the request, item by item
}

// ProblemOf returns the problem of a failed call.
func ProblemOf(err error) *Problem { return problemOf(status.Convert(err)) }

// ProblemOfStatus returns the problem of a rejected document.
func ProblemOfStatus(message *spb.Status) *Problem { return problemOf(status.FromProto(message)) }

func problemOf(failure *status.Status) *Problem {
	problem := &Problem{Code: failure.Code(), Message: failure.Message()}
	for _, detail := range failure.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			problem.Reason = detail.Reason
		case *errdetails.RetryInfo:
			problem.RetryDelay = detail.RetryDelay.AsDuration()
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				problem.Violations = append(
					problem.Violations, fmt.Sprintf("%s: %s %s", violation.Field, violation.Reason, violation.Description),
				)
			}
		}
	}
	return problem
}

// IsTransient says whether the same call may succeed later.
func (p *Problem) IsTransient() bool {
	switch p.Code {
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded, codes.Aborted:
		return true
	}
	return false
}

// Error is one line: "RESOURCE_EXHAUSTED OVERLOADED: the queue is full (retry after 2s)".
func (p *Problem) Error() string {
	line := fmt.Sprintf("%v %s: %s", rpccode.Code(p.Code), p.Reason, p.Message)
	if len(p.Violations) > 0 {
		line += " [" + strings.Join(p.Violations, "; ") + "]"
	}
	if p.RetryDelay > 0 {
		line += fmt.Sprintf(" (retry after %v)", p.RetryDelay)
	}
	return line
}
