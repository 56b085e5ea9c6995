package status

import (
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
		return nil, fmt.Errorf("status from %s: %w; is that socket twilld's?", path, err)
	}
	return &d, nil
}

// FetchJSON is Fetch for callers that want the document as the daemon wrote it,
// with fields that this version of the client does not know.
func FetchJSON(ctx context.Context, path string) ([]byte, error) {
	code, raw, err := get(ctx, path, "/status")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("ask twilld on %s: %d %s; is that socket twilld's?", path, code, http.StatusText(code))
	}
	return raw, err
}

// get requests what, a path of HTTP, from the daemon on the socket path.
func get(ctx context.Context, path, what string) (code int, body []byte, err error) {
	return request(ctx, path, http.MethodGet, what)
}

func request(ctx context.Context, path, method, what string) (code int, body []byte, err error) {
	client, closeIdle := clientOf(path)
	defer closeIdle()
	req, err := http.NewRequestWithContext(ctx, method, "http://twilld"+what, nil)
	if err != nil {
		return 0, nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("ask twilld on %s: %w", path, remedy(err))
	}
	defer res.Body.Close()
	if body, err = io.ReadAll(io.LimitReader(res.Body, maxDocument)); err != nil {
		return 0, nil, fmt.Errorf("%s from %s: %w", what[1:], path, err)
	}
	return res.StatusCode, body, nil
}

// clientOf returns a client of the daemon on the socket path.
func clientOf(path string) (client *http.Client, closeIdle func()) {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}
	return &http.Client{Transport: transport}, transport.CloseIdleConnections
}

// remedy returns what to do about an error of connect(2).
func remedy(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("no such socket; is twilld running, and with this --socket?")
	case errors.Is(err, unix.ECONNREFUSED):
		return errors.New("no process listens on it; twilld has died or is being restarted")
	case errors.Is(err, os.ErrPermission):
		return errors.New("permission denied; the socket is open to the user of twilld (root) only")
	default:
		return err
	}
}
