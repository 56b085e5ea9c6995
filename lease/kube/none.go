//go:build nokube

package kube

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/twillnet/twill/lease"
)

// Built reports whether this build includes Kubernetes support.
const Built = false

// Store does not exist in this build.
type Store struct{ methods }

// methods has the methods of Store in other builds.
type methods interface {
	lease.Store
	WaitConfig(ctx context.Context, refused func(error)) (*lease.Config, error)
	PublishedText(ctx context.Context) ([]byte, error)
	Leases(ctx context.Context) ([]lease.Lease, error)
	NodeAddrs(ctx context.Context) (ipv4, ipv6 netip.Addr, err error)
	Away() (since time.Time, why error)
	Watched() bool
	Ready()
	KeepEvents(ctx context.Context, holding func() []Event)
	Close() error
}

// Open returns an error.
func Open(Options) (*Store, error) {
	return nil, errors.New("open Kubernetes: this program was built without Kubernetes support (nokube)")
}
