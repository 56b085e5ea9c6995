//go:build !noetcd

package etcd

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"

	"google.golang.org/grpc/grpclog"

	"github.com/twillnet/twill/internal/logging"
)

// LogGRPC sends the errors and warnings of gRPC to log instead of standard error.
// gRPC has one logger per process and reads it without a lock, so LogGRPC must be
// called before anything uses gRPC.
func LogGRPC(log *slog.Logger) { grpclog.SetLoggerV2(newGRPCLog(log)) }

func newGRPCLog(log *slog.Logger) grpclog.LoggerV2 {
	// The writer for warnings also receives errors.
	return grpclog.NewLoggerV2(io.Discard, grpcLines{log}, io.Discard)
}

// grpcLines logs the lines that gRPC writes: "2026/01/31 12:00:00 ERROR: text".
type grpcLines struct{ log *slog.Logger }

// Write implements io.Writer for one line. Errors become warnings, since requests
// are repeated and their failures have lines of their own; gRPC's warnings repeat
// those failures, so they are for debugging.
func (g grpcLines) Write(line []byte) (int, error) {
	level, text := slog.LevelDebug, string(bytes.TrimSpace(line))
	if _, after, ok := strings.Cut(text, " WARNING: "); ok {
		text = after
	} else if _, after, ok := strings.Cut(text, " ERROR: "); ok {
		level, text = slog.LevelWarn, after
	}
	g.log.Log(context.Background(), level, "gRPC", logging.KeyWhy, text)
	return len(line), nil
}
