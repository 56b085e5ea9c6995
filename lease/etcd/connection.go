//go:build !noetcd

package etcd

import (
	"context"
	"time"

	"google.golang.org/grpc/connectivity"

	"github.com/twillnet/twill/internal/logging"
)

// reconnects observes the connection until ctx is done, and sends when a lost
// connection is restored. It logs both events, because the client's watches wait
// for the connection without reporting an error.
func (s *Store) reconnects(ctx context.Context) <-chan struct{} {
	back := make(chan struct{}, 1)
	conn := s.client.ActiveConnection()
	go func() {
		lost := false
		for {
			state := conn.GetState()
			switch state {
			case connectivity.Idle:
				conn.Connect()
			case connectivity.TransientFailure:
				lost = true
				if s.outage.note(time.Now()) {
					s.log.Warn("connection to etcd lost, leases stay in force until it is restored",
						logging.KeyRemedy, "check that etcd is running and can be reached from this node")
				}
			case connectivity.Ready:
				if !lost {
					break
				}
				lost = false
				if away, logged := s.outage.end(); logged {
					s.log.Info("connection to etcd restored", logging.KeyAway, away)
				}
				select {
				case back <- struct{}{}:
				default: // the previous one is still unread
				}
			}
			if !conn.WaitForStateChange(ctx, state) {
				return
			}
		}
	}()
	return back
}
