package daemon

import (
	"log/slog"
	"time"

	"github.com/twillnet/twill/internal/daemon/handover"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
)

// routes returns the requests that the control socket answers besides GET /status. The
// commands of twill read the store through it if they cannot do so themselves.
func (d *daemon) routes() []status.Route {
	r := []status.Route{
		{Pattern: "POST " + handover.Path, Handler: d.acceptHandover},
		status.LogLevelRoute(d.changeLogLevel),
		status.CaptureRoute(d.capture),
	}
	if d.options.leaseFile != "" {
		return r
	}
	return append(r, status.StoreRoutes(func() status.Store {
		if s := d.readable.Load(); s != nil {
			return *s
		}
		return nil
	})...)
}

// letRead makes the control socket answer with what s has.
func (d *daemon) letRead(s status.Store) { d.readable.Store(&s) }

// changeLogLevel changes the log level for the given time.
func (d *daemon) changeLogLevel(to slog.Level, during time.Duration) {
	d.log.Info("log level changed", logging.KeyNow, to, logging.KeyDuration, during)
	d.level.Change(to, during)
}
