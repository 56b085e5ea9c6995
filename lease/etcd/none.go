//go:build noetcd

package etcd

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/twillnet/twill/lease"
)

// Built reports whether this build includes a client of etcd.
const Built = false

// Store does not exist in this build.
type Store struct{ methods }

// methods has the methods of Store in other builds.
type methods interface {
	lease.Store
	PublishedText(ctx context.Context) ([]byte, error)
	SetConfig(ctx context.Context, text []byte) (*lease.Config, error)
	WaitConfig(ctx context.Context, refused func(error)) (*lease.Config, error)
	Leases(ctx context.Context) ([]lease.Lease, error)
	Reserve(ctx context.Context, l lease.Lease) (*lease.Lease, error)
	Release(ctx context.Context, l lease.Lease) (*lease.Lease, error)
	Away() (since time.Time, why error)
	Watched() bool
	Close() error
}

// Open returns an error.
func Open(context.Context, Options) (*Store, error) {
	return nil, errors.New("open etcd: this program was built without etcd support (noetcd)")
}

// LogGRPC does nothing.
func LogGRPC(*slog.Logger) {}
