package etcd

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// ErrNoConfig reports that etcd has no network config under the prefix.
var ErrNoConfig = errors.New("no network config")

// Error reports which request to etcd failed and what to do about it. It never
// holds a password.
type Error struct {
	Endpoints []string
	Op        string // "read config /coreos.com/network/config"
	Err       error
	text      string // that of Err without gRPC's wrapping; empty: Err's own
	Remedy    string // empty if Err includes it
	// Ended is the context's error if the context was done while the request was
	// still being retried.
	Ended error
}

func (e *Error) Error() string {
	text, remedy := e.Explain()
	if remedy != "" {
		text += "; " + remedy
	}
	return text
}

// Explain returns the text without the remedy, and the remedy.
func (e *Error) Explain() (cause, remedy string) {
	return fmt.Sprintf("etcd %s: %s: %s", strings.Join(e.Endpoints, ","), e.Op, cmp.Or(e.text, e.Err.Error())), e.Remedy
}

// Unwrap returns the cause and, if the context ended, the context's error.
func (e *Error) Unwrap() []error {
	if e.Ended != nil {
		return []error{e.Ended, e.Err}
	}
	return []error{e.Err}
}
