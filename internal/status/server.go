package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"

	"github.com/twillnet/twill/internal/httplimit"
)

// DefaultSocket is where twilld listens and twill asks by default.
const DefaultSocket = "/run/flannel/twilld.sock"

// maxConnections bounds the commands that ask at once, each of which may be sent some
// MB.
const maxConnections = 16

// Server answers GET /status on a unix socket. The socket is also what keeps
// a second daemon from starting with the same one.
type Server struct {
	http *http.Server
	done chan struct{}
}

// Route is a request that the socket answers besides GET /status.
type Route struct {
	Pattern string // as of [http.ServeMux]
	Handler http.HandlerFunc
}

// Listen makes the socket at path, which only its owner may connect to, and
// answers there with what document returns until Close. document is called
// from several goroutines.
//
// A socket that a dead daemon left is replaced, and one of a daemon that is dying
// is waited for. A process that answers on it, or holds it without answering, is
// an error that names the process.
func Listen(path string, document func() Document, log *slog.Logger, more ...Route) (*Server, error) {
	l, err := listen(path)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w; run twilld as root, or choose another path with --socket", err)
	}
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(document()) // fails only if the client has gone
	})
	for _, r := range more {
		mux.HandleFunc(r.Pattern, r.Handler)
	}
	s := &Server{
		http: httplimit.Server(mux, log),
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(httplimit.Listener(l, httplimit.Limits{Local: maxConnections})) // ends by Close
	}()
	return s, nil
}

// Close removes the socket and ends requests under way.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}
