package status

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"golang.org/x/sys/unix"
)

// maxDocument bounds what the client reads: 5,000 peers take about 1 MiB.
const maxDocument = 64 << 20

// Fetch requests the document of the daemon that listens on the unix socket
// path.
func Fetch(ctx context.Context, path string) (*Document, error) {
	raw, err := FetchJSON(ctx, path)
	if err != nil {
		return nil, err
	}
	var d Document
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, fmt.Errorf("status from %s: %w; is that twilld's socket?", path, err)
	}
	return &d, nil
}

// FetchJSON is Fetch for callers that want the document as the daemon wrote it,
// including fields that this version of the client does not know.
func FetchJSON(ctx context.Context, path string) ([]byte, error) {
	code, raw, err := request(ctx, path, http.MethodGet, "/status")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("query twilld on %s: %d %s; is that twilld's socket?", path, code, http.StatusText(code))
	}
	return raw, err
}

// request requests the HTTP path what from the daemon on the socket path.
func request(ctx context.Context, path, method, what string) (code int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://twilld"+what, nil)
	if err != nil {
		return 0, nil, err
	}
	res, err := exchange(req, path)
	if err != nil {
		return 0, nil, fmt.Errorf("query twilld on %s: %w", path, remedy(err))
	}
	defer res.Body.Close()
	if body, err = io.ReadAll(io.LimitReader(res.Body, maxDocument)); err != nil {
		return 0, nil, fmt.Errorf("%s from %s: %w", what[1:], path, remedy(err))
	}
	return res.StatusCode, body, nil
}

// exchange sends req to the daemon on the socket path and returns its answer, whose Body
// must be closed. The answer may arrive before the body of req ends. An http.Client would
// do the same, but link TLS, proxies and connection pools, which add 0.2 MB to each
// program and are useless on a unix socket.
func exchange(req *http.Request, path string) (*http.Response, error) {
	ctx := req.Context()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, cause(ctx, err)
	}
	answer := &answerBody{ctx: ctx, conn: conn, stop: context.AfterFunc(ctx, func() { conn.Close() })}
	req.Close = true
	go func() { _ = req.Write(conn) }() // a failure also ends the answer
	res, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		answer.Close()
		return nil, cause(ctx, err)
	}
	answer.Reader, res.Body = res.Body, answer
	return res, nil
}

// answerBody is the body of an answer. Its connection is closed when ctx is done.
type answerBody struct {
	io.Reader
	ctx  context.Context
	conn net.Conn
	stop func() bool
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	return n, cause(b.ctx, err)
}

// Close closes the connection.
func (b *answerBody) Close() error {
	if !b.stop() {
		return nil // already closed because ctx is done
	}
	return b.conn.Close()
}

// cause returns why a connection failed with err: the error of ctx, if that is done.
func cause(ctx context.Context, err error) error {
	if err != nil && err != io.EOF && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// remedy returns what to do about an error of connect(2).
func remedy(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("no such socket; is twilld running, and with this --socket?")
	case errors.Is(err, unix.ECONNREFUSED):
		return errors.New("no process listens on it; twilld was killed or is being restarted")
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("%w; allow this process more with \"ulimit -n\"", err)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return errors.New("no answer in time; twilld hangs or may open no more files: " +
			"compare /proc/PID/fd with LimitNOFILE=, see its log, and restart it if it does not recover")
	case errors.Is(err, os.ErrPermission):
		return errors.New("permission denied; only the user that runs twilld (root) can use the socket")
	default:
		return err
	}
}
