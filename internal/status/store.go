package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/kube/layout"
)

// Store is a store of leases that the daemon reads for the commands on its host, which
// have no client for it: Kubernetes.
type Store interface {
	// Leases returns all leases as the store has them now.
	Leases(context.Context) ([]lease.Lease, error)
	// PublishedText returns the network configuration as written, valid or not.
	PublishedText(context.Context) ([]byte, error)
}

// Paths of the requests for a Store.
const (
	leasesPath = "/store/leases"
	configPath = "/store/config"
)

// storeTimeout is how long the daemon waits for the store. It is less than the
// server's time for an answer, so that the answer can name what is missing.
const storeTimeout = 8 * time.Second

// refusal is the body of an answer for an error: a *layout.Error, or the text of any
// other error as Cause.
type refusal struct {
	Op     string `json:"operation,omitempty"`
	Cause  string `json:"cause"`
	Remedy string `json:"remedy,omitempty"`
}

// StoreRoutes returns the requests by which commands read the store through the daemon.
// store returns nil before there is one; it must be safe for concurrent use.
func StoreRoutes(store func() Store) []Route {
	answer := func(path string, read func(context.Context, Store) ([]byte, error)) Route {
		return Route{"GET " + path, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
			defer cancel()
			err := errors.New("twilld has not opened the store yet; try again later, or see twill status for what it is waiting for")
			var body []byte
			if s := store(); s != nil {
				body, err = read(ctx, s)
			}
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				body, _ = json.Marshal(refusalOf(err)) // three texts
			}
			_, _ = w.Write(body) // fails only if the client has gone
		}}
	}
	return []Route{
		answer(configPath, func(ctx context.Context, s Store) ([]byte, error) { return s.PublishedText(ctx) }),
		answer(leasesPath, func(ctx context.Context, s Store) ([]byte, error) {
			all, err := s.Leases(ctx)
			if err != nil {
				return nil, err
			}
			return json.Marshal(all)
		}),
	}
}

func refusalOf(err error) refusal {
	var e *layout.Error
	if errors.As(err, &e) {
		return refusal{e.Op, e.Err.Error(), e.Remedy}
	}
	return refusal{Cause: err.Error()}
}

// Remote is the Store of the daemon that listens on the unix socket at this path. Errors
// of the store are *layout.Error, as in the daemon.
type Remote string

var _ Store = Remote("")

// Leases implements Store.
func (r Remote) Leases(ctx context.Context) ([]lease.Lease, error) {
	raw, err := r.read(ctx, leasesPath)
	if err != nil {
		return nil, err
	}
	var all []lease.Lease
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("leases from %s: %w; is that twilld's socket?", string(r), err)
	}
	return all, nil
}

// PublishedText implements Store.
func (r Remote) PublishedText(ctx context.Context) ([]byte, error) { return r.read(ctx, configPath) }

func (r Remote) read(ctx context.Context, what string) ([]byte, error) {
	code, body, err := get(ctx, string(r), what)
	switch {
	case err != nil:
		return nil, err
	case code == http.StatusOK:
		return body, nil
	case code == http.StatusNotFound:
		return nil, fmt.Errorf("query twilld on %s: it does not serve %s; restart it to run the same version as twill", string(r), what)
	}
	var answer refusal
	switch {
	case code != http.StatusBadGateway || json.Unmarshal(body, &answer) != nil:
		return nil, fmt.Errorf("query twilld on %s: %d %s; is that twilld's socket?", string(r), code, http.StatusText(code))
	case answer.Op == "":
		return nil, errors.New(answer.Cause)
	}
	return nil, &layout.Error{Op: answer.Op, Err: errors.New(answer.Cause), Remedy: answer.Remedy}
}
