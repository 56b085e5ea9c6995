//go:build !noetcd

package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// cause returns the text of err without gRPC's wrapping.
func cause(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	if st, ok := status.FromError(err); ok {
		return dialError(st.Message())
	}
	return err.Error()
}

// dialError returns why a connection could not be made, without the text in which gRPC
// quotes that reason (ConnectionError of its package internal/transport). Other texts are
// returned unchanged.
func dialError(text string) string {
	_, quoted, ok := strings.Cut(text, "connection error: desc = ")
	if !ok {
		return text
	}
	reason, err := strconv.Unquote(quoted)
	if err != nil {
		return text
	}
	return strings.TrimPrefix(strings.TrimPrefix(reason, "transport: "), "Error while dialing: ")
}

// retryable reports whether the same request may succeed later, on its own or
// after an operator has repaired etcd.
func retryable(err error) bool {
	switch err = rpctypes.Error(err); {
	case errors.Is(err, context.DeadlineExceeded),
		// The login token has expired: the next attempt gets a new one.
		errors.Is(err, rpctypes.ErrInvalidAuthToken),
		errors.Is(err, rpctypes.ErrAuthOldRevision):
		return true
	}
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Internal:
		return true
	}
	return false
}

// always retries, for loops that have no caller to return an error to.
func always(error) bool { return true }

func code(err error) codes.Code {
	var server rpctypes.EtcdError
	if errors.As(err, &server) {
		return server.Code()
	}
	return status.Code(err)
}

// remedy returns what an operator can do about err.
func (s *Store) remedy(err error) string {
	err = rpctypes.Error(err)
	text := err.Error()
	switch {
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return "check --etcd-username and --etcd-password"
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return "etcd requires a user: set --etcd-username and --etcd-password"
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Sprintf("grant the user's role read access to %s, and read and write access to %s (etcdctl role grant-permission ROLE readwrite --prefix %[2]s)",
			s.layout.config, s.layout.subnets)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return "etcd's database is full: compact and defragment it, raise --quota-backend-bytes, then run etcdctl alarm disarm"
	case strings.Contains(text, "x509:"):
		return "check --etcd-cafile and the names in etcd's certificate"
	case strings.Contains(text, "remote error: tls"):
		return "etcd refuses this client's certificate: check --etcd-certfile and --etcd-keyfile"
	case strings.Contains(text, "first record does not look like a TLS handshake"):
		return "the endpoint speaks plain HTTP: correct --etcd-endpoints"
	case code(err) == codes.Unavailable && strings.HasPrefix(s.endpoints[0], "https://") &&
		!strings.Contains(text, "Error while dialing") && !strings.Contains(text, "etcdserver"):
		// In TLS 1.3 the server checks the client's certificate after the client has
		// completed its handshake, and may close the connection before its alert is
		// read.
		return "check that etcd is healthy; it also closes the connection if it refuses this client's certificate: check --etcd-certfile and --etcd-keyfile"
	case code(err) == codes.Unavailable, code(err) == codes.DeadlineExceeded, errors.Is(err, context.DeadlineExceeded):
		return "check that etcd is running, has a leader and can be reached from this node, or correct --etcd-endpoints"
	}
	return ""
}

// fail returns the error of a request that will not be retried. ended is the
// error of its context, if that is the reason.
func (s *Store) fail(op string, err, ended error) error {
	return &Error{Endpoints: s.endpoints, Op: op, Err: err, text: cause(err), Remedy: s.remedy(err), Ended: ended}
}
