package keep

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/host/nlbatch"
	"github.com/twillnet/twill/internal/logging"
)

// said records what has been logged, so that it is not logged again.
type said struct {
	restored string // what was restored
	at       time.Time
	failures map[any]error // by the key of the object
	read     string        // why the kernel's state could not be read
}

func newSaid() said { return said{failures: make(map[any]error)} }

// silence is the minimum time between identical log lines about restored
// objects.
const silence = time.Minute

// recordKey is the key of the record file.
type recordKey struct{}

// report logs the outcome of an apply, without repeating itself. running
// reports that Run called apply.
func (k *Keeper) report(o outcome, err error, running bool) {
	log := k.cfg.Logger
	if errors.Is(err, ErrDeviceGone) {
		return // Run returns it
	}
	if err != nil {
		if text := err.Error(); text != k.said.read {
			k.said.read = text
			log.Warn("cannot read kernel state, retrying", logging.KeyError, err)
		}
		return
	}
	k.said.read = ""
	if what := strings.Join(o.restored, ", "); running && what != "" {
		if o.more > 0 {
			what += fmt.Sprintf(" and %d more", o.more)
		}
		if what != k.said.restored || time.Since(k.said.at) > silence {
			k.said.restored, k.said.at = what, time.Now()
			log.Info("kernel state changed by another program, restored", logging.KeyNow, what)
		}
	}
	k.reportFailures(o.failures)
	k.reportFights()
}

// reportFailures logs the first new failure, and the number of the others.
func (k *Keeper) reportFailures(failures []failure) {
	before := k.said.failures
	k.said.failures = make(map[any]error, len(failures))
	var fresh []error
	for _, f := range failures {
		if was := before[f.key]; was == nil || was.Error() != f.err.Error() {
			fresh = append(fresh, f.err)
		}
		k.said.failures[f.key] = f.err
	}
	switch {
	case len(fresh) == 1:
		k.cfg.Logger.Warn("kernel state incomplete", logging.KeyError, fresh[0])
	case len(fresh) > 1:
		k.cfg.Logger.Warn("kernel state incomplete", logging.KeyError, fmt.Errorf("%w (and %d more)", fresh[0], len(fresh)-1))
	case len(before) > 0 && len(failures) == 0:
		k.cfg.Logger.Info("kernel state complete again")
	}
}

// reportFights logs the objects that another program removes repeatedly.
func (k *Keeper) reportFights() {
	now := time.Now()
	for key, p := range k.paces {
		switch {
		case now.Sub(p.last) > calm:
			delete(k.paces, key)
		case p.rest >= time.Second && !p.said:
			p.said = true
			k.cfg.Logger.Warn("another program keeps changing what twill restores, restoring it less often",
				logging.KeyOf, k.keyWords(key), logging.KeyRemedy, "find the program with 'ip monitor'")
		}
	}
}

// keyWords describes an object by its key.
func (k *Keeper) keyWords(key any) string {
	switch key := key.(type) {
	case linkKey:
		return key.what + " dev " + key.dev
	case fdbKey:
		return k.kindWords(nlbatch.FDB{Dev: key.dev, MAC: key.mac, Dst: k.want.fdb[key]})
	case neighKey:
		return k.kindWords(nlbatch.Neigh{Dev: key.dev, IP: key.ip, MAC: k.want.neighs[key]})
	case routeKey:
		return k.kindWords(k.want.routes[key].Route)
	}
	return fmt.Sprint(key)
}

// words describes an object with the name of its device instead of the index.
func (k *Keeper) words(object any) string {
	dev := 0
	switch o := object.(type) {
	case nlbatch.Route:
		dev = o.Dev
	case nlbatch.FDB:
		dev = o.Dev
	case nlbatch.Neigh:
		dev = o.Dev
	}
	s := fmt.Sprint(object)
	if dev == 0 {
		return s
	}
	return strings.Replace(s, fmt.Sprintf(" dev %d", dev), " dev "+k.link(dev).name, 1)
}

// kindWords is words preceded by the kind of the object.
func (k *Keeper) kindWords(object any) string {
	kind := ""
	switch object.(type) {
	case nlbatch.Route:
		kind = "route "
	case nlbatch.FDB:
		kind = "FDB entry "
	case nlbatch.Neigh:
		kind = "neighbour "
	}
	return kind + k.words(object)
}

// linkState is the state of a device for messages.
type linkState struct {
	name       string // the index if the device is gone
	gone, down bool
}

func (k *Keeper) link(index int) linkState {
	s, ok := k.linkStates[index]
	if ok {
		return s
	}
	if link, err := k.nl.LinkByIndex(index); err == nil {
		s = linkState{name: link.Attrs().Name, down: link.Attrs().Flags&net.FlagUp == 0}
	} else {
		s = linkState{name: strconv.Itoa(index), gone: errors.As(err, &netlink.LinkNotFoundError{})}
	}
	k.linkStates[index] = s
	return s
}
