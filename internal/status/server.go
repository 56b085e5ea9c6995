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

// DefaultSocket is the path at which twilld listens and twill connects by
// default.
const DefaultSocket = "/run/flannel/twilld.sock"

// maxConnections bounds the number of concurrent clients, each of which may be sent
// several MB.
const maxConnections = 16

// Server answers GET /status on a unix socket. The socket also keeps a second
// daemon from starting with the same one.
type Server struct {
	http *http.Server
	done chan struct{}
}

// Route is a further request that the socket answers besides GET /status.
type Route struct {
	Pattern string // as in [http.ServeMux]
	Handler http.HandlerFunc
}

// Listen creates the socket at path, which only its owner may connect to, and
// serves the result of document there until Close. document is called from
// several goroutines.
//
// Listen replaces a socket that a dead daemon left, and waits for a daemon that
// is dying. A process that answers on the socket, or holds it without answering,
// is an error that names the process.
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
		_ = s.http.Serve(httplimit.Listener(l, httplimit.Limits{Local: maxConnections, Reserve: true})) // ends with Close
	}()
	return s, nil
}

// Close removes the socket and aborts requests in progress.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}
