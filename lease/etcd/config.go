//go:build !noetcd

package etcd

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/lease"
)

// Config returns the network config. Its error wraps ErrNoConfig if there is
// none, and a *lease.ConfigError or *lease.SyntaxError if it is invalid.
func (s *Store) Config(ctx context.Context) (*lease.Config, error) {
	v, _, err := s.readConfig(ctx)
	if err != nil {
		return nil, err
	}
	return v.parsed, s.configError(v)
}

// PublishedText returns the text of the network config, valid or not. Its error
// wraps ErrNoConfig if there is none.
func (s *Store) PublishedText(ctx context.Context) ([]byte, error) {
	v, _, err := s.readConfig(ctx)
	if err == nil && v.revision == 0 {
		err = s.configError(v)
	}
	return v.text, err
}

// SetConfig writes a network config unchanged. If lease.ParseConfig refuses it,
// nothing is written and its error is returned. Running nodes apply what they can
// and report what needs a restart.
func (s *Store) SetConfig(ctx context.Context, text []byte) (*lease.Config, error) {
	c, err := lease.ParseConfig(text)
	if err != nil {
		return nil, err
	}
	return c, s.retry(ctx, "write config "+s.layout.config, retryable, func(ctx context.Context) error {
		_, err := s.client.Put(ctx, s.layout.config, string(text))
		return err
	})
}

// WaitConfig returns the network config as soon as it is valid. It calls refused
// with the error of Config if it is not valid at first, and again for each invalid
// one that is written.
func (s *Store) WaitConfig(ctx context.Context, refused func(error)) (*lease.Config, error) {
	var last string
	for {
		v, revision, err := s.readConfig(ctx)
		if err != nil {
			return nil, err
		}
		err = s.configError(v)
		if err == nil {
			return v.parsed, nil
		}
		if err.Error() != last {
			last = err.Error()
			refused(err)
		}
		if err := s.awaitConfig(ctx, revision); err != nil {
			return nil, err
		}
	}
}

// readConfig returns the value of the config key, and etcd's revision.
func (s *Store) readConfig(ctx context.Context) (configValue, int64, error) {
	v, revision := parseConfig(nil, 0), int64(0)
	err := s.retry(ctx, "read config "+s.layout.config, retryable, func(ctx context.Context) error {
		resp, err := s.client.Get(ctx, s.layout.config)
		if err != nil {
			return err
		}
		revision = resp.Header.Revision
		for _, kv := range resp.Kvs {
			v = parseConfig(kv.Value, kv.ModRevision)
		}
		return nil
	})
	return v, revision, err
}

// configError returns why v cannot be used, with the key and the remedy, or nil if
// it can.
func (s *Store) configError(v configValue) error {
	if v.err == nil {
		return nil
	}
	remedy := "correct it with twill config set"
	if v.revision == 0 {
		remedy = fmt.Sprintf(`write one with twill config set, or etcdctl put %s '{"Network": "10.5.0.0/16"}'`, s.layout.config)
	}
	return &Error{Endpoints: s.endpoints, Op: "config " + s.layout.config, Err: v.err, Remedy: remedy}
}

// awaitConfig returns nil when the config key may have changed since revision,
// and the error of ctx when that is done.
func (s *Store) awaitConfig(ctx context.Context, revision int64) error {
	watching, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	back := s.reconnects(watching)
	changes := s.client.Watch(watching, s.layout.config, clientv3.WithRev(revision+1))
	select {
	case resp, ok := <-changes:
		if ok && resp.Err() == nil {
			return nil
		}
		// The watch has ended, for example because etcd has no leader or has
		// compacted the revision. The caller reads again.
		return new(backoff).wait(ctx)
	case <-back:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
