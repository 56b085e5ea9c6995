//go:build !nokube

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/twillnet/twill/lease"
)

// inBrief is an error with a shorter text.
type inBrief struct {
	text string
	error
}

func (e *inBrief) Error() string { return e.text }
func (e *inBrief) Unwrap() error { return e.error }

// cause returns the text of err without the client's wrapping.
func cause(err error) string {
	var status apierrors.APIStatus
	var request *url.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case apierrors.IsUnauthorized(err):
		return "the API server rejected the credentials"
	case errors.As(err, &status) && status.Status().Message != "":
		return status.Status().Message
	case errors.As(err, &request):
		return request.Err.Error() // the URL has nothing that an operator can change
	}
	return err.Error()
}

// refused reports whether the API server, or a proxy in between, refuses the
// node itself, which only an operator can resolve.
func refused(err error) bool {
	text := err.Error()
	return apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) ||
		strings.Contains(text, "x509:") || strings.Contains(text, "remote error: tls") ||
		strings.Contains(text, "getting credentials:")
}

// fail returns the error of a request.
func (s *Store) fail(op string, err error) *Error {
	var made *Error
	if errors.As(err, &made) {
		return made
	}
	e := &Error{Op: op, Err: &inBrief{cause(err), err}, Kind: lease.ErrPending, Remedy: s.remedy(err)}
	if refused(err) {
		e.Kind = errDeniedForNow
	}
	return e
}

// errDeniedForNow is lease.ErrDenied for a request that may be granted later.
var errDeniedForNow = fmt.Errorf("%w: %w", lease.ErrDenied, lease.ErrPending)

// remedy returns what an operator can do about err.
func (s *Store) remedy(err error) string {
	text := err.Error()
	credentials := "the service account's token"
	switch {
	case s.access.o.Kubeconfig != "":
		credentials = "the user in " + s.access.o.Kubeconfig
	case s.access.o.APIURL != "":
		credentials = "--kubeconfig-file, since --kube-api-url alone provides no credentials"
	}
	switch {
	case apierrors.IsUnauthorized(err):
		return "check " + credentials
	case apierrors.IsForbidden(err):
		return "allow this user to get, list and watch nodes, patch nodes/status, and get pods (ClusterRole flannel)"
	case strings.Contains(text, "getting credentials:"):
		return "the kubeconfig's exec command must be installed where twilld runs, and succeed: correct users[].user.exec in " + s.access.o.Kubeconfig
	case strings.Contains(text, "x509:"), strings.Contains(text, "remote error: tls"):
		return "check the certificate authority, and any client certificate, of " + credentials
	}
	return "check that the API server is running and can be reached from this node, or correct --kube-api-url or --kubeconfig-file"
}
