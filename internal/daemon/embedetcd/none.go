//go:build noembed

package embedetcd

import (
	"context"
	"errors"
)

// Built reports whether this build includes an etcd.
const Built = false

// Server does not exist in this build.
type Server struct{}

// Start returns an error.
func Start(context.Context, Config) (*Server, error) {
	return nil, errors.New("start embedded etcd: this build does not include it (noembed)")
}

// Failed receives nothing.
func (*Server) Failed() <-chan error { return nil }

// Close does nothing.
func (*Server) Close() {}
