package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/twillnet/twill/lease"
)

// Store is a store of leases that the daemon reads for the commands on its host: those in
// Kubernetes, for which they have no client, and in an etcd for which they have no password.
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

// Explained is an error of a store whose remedy can be shown apart from the rest of its text.
type Explained interface {
	error
	// Explain returns the parts of the text. remedy is empty if there is none, or if cause
	// includes it.
	Explain() (cause, remedy string)
}

// refusal is the body of an answer for an error, and the error that it becomes here.
type refusal struct {
	Cause  string `json:"cause"`
	Remedy string `json:"remedy,omitempty"`
}

var _ Explained = (*refusal)(nil)

// Error implements error.
func (r *refusal) Error() string {
	if r.Remedy == "" {
		return r.Cause
	}
	return r.Cause + "; " + r.Remedy
}

// Explain implements Explained.
func (r *refusal) Explain() (cause, remedy string) { return r.Cause, r.Remedy }

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
	var e Explained
	if errors.As(err, &e) {
		cause, remedy := e.Explain()
		return refusal{cause, remedy}
	}
	return refusal{Cause: err.Error()}
}

// Remote is the Store of the daemon that listens on the unix socket at this path. Errors
// of the store are Explained, as in the daemon.
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
	code, body, err := request(ctx, string(r), http.MethodGet, what)
	switch {
	case err != nil:
		return nil, err
	case code == http.StatusOK:
		return body, nil
	case code == http.StatusNotFound:
		return nil, fmt.Errorf("query twilld on %s: it does not serve %s; restart it to run the same version as twill", string(r), what)
	}
	var answer refusal
	if code != http.StatusBadGateway || json.Unmarshal(body, &answer) != nil {
		return nil, fmt.Errorf("query twilld on %s: %d %s; is that twilld's socket?", string(r), code, http.StatusText(code))
	}
	return nil, &answer
}
