package top

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gdamore/tcell/v3"

	"github.com/twillnet/twill/internal/textpage"
)

// Options are what Watch shows, and where.
type Options struct {
	Sample   func(context.Context) (Sample, error)
	Interval time.Duration // between samples
	By       Order
	Terminal tcell.Tty // nil: the controlling terminal
}

// Watch shows a page that follows the node, until the user quits or ctx is done. A
// sample that fails is shown in place of the next page; Watch continues.
func Watch(ctx context.Context, o Options) error {
	tcell.SetEncodingFallback(tcell.EncodingFallbackASCII) // pages are ASCII, which every locale has
	// Asking the terminal what it can do would delay the first page where it does not answer.
	screen, err := tcell.NewTerminfoScreenFromTty(o.Terminal, tcell.OptNegotiation(false), tcell.OptColors(0))
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		return fmt.Errorf("open terminal: %w; --once needs none", err)
	}
	defer screen.Fini()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	samples := make(chan sampled)
	go follow(ctx, o, samples)
	v := view{by: o.By}
	for {
		v.draw(screen)
		select {
		case s := <-samples:
			v.receive(s)
		case event := <-screen.EventQ():
			if key, ok := event.(*tcell.EventKey); ok && v.key(key) {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// sampled is the outcome of Options.Sample.
type sampled struct {
	sample Sample
	err    error
}

// follow takes samples until ctx is done.
func follow(ctx context.Context, o Options, to chan<- sampled) {
	for {
		s, err := o.Sample(ctx)
		select {
		case to <- sampled{s, err}:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(o.Interval):
		case <-ctx.Done():
			return
		}
	}
}

// view is what the screen shows.
type view struct {
	by     Order
	from   int // first peer shown
	height int // of the screen
	last   Sample
	page   *Page // nil before the second sample
	err    error // of the last sample
}

func (v *view) receive(s sampled) {
	v.err = s.err
	if s.err != nil {
		return
	}
	if v.last.Document != nil {
		page := Compare(v.last, s.sample)
		page.Sort(v.by)
		v.page = &page
	}
	v.last = s.sample
}

// key does what a key is for, and reports whether that is to quit.
func (v *view) key(k *tcell.EventKey) (quit bool) {
	peers := 0
	if v.page != nil {
		peers = len(v.page.Peers)
	}
	screen := max(v.height/2, 1)
	name := k.Str()
	if k.Key() != tcell.KeyRune {
		name = tcell.KeyNames[k.Key()]
	}
	switch name {
	case "q", "Ctrl-C", "Esc":
		return true
	case "s":
		i := slices.Index(Orders, v.by)
		v.by = Orders[(i+1)%len(Orders)]
		if v.page != nil {
			v.page.Sort(v.by)
		}
	case "Down", "j":
		v.from++
	case "Up", "k":
		v.from--
	case "PgDn", " ":
		v.from += screen
	case "PgUp":
		v.from -= screen
	case "Home", "g":
		v.from = 0
	case "End", "G":
		v.from = peers
	}
	v.from = max(min(v.from, peers-1), 0)
	return false
}

// draw shows the page, cut to the size of the screen.
func (v *view) draw(screen tcell.Screen) {
	width, height := screen.Size()
	v.height = height
	text := "waiting for twilld\n"
	switch {
	case v.err != nil:
		var p textpage.Page
		p.Text(0, "", "twilld does not answer: "+v.err.Error())
		text = p.String()
	case v.page != nil:
		text = v.page.Text(width, height-1, v.from, v.by)
	}
	screen.Clear()
	y := 0
	for line := range strings.Lines(text + "q quits, s sorts by another column, arrow keys scroll") {
		screen.PutStr(0, y, strings.TrimSuffix(line, "\n"))
		y++
	}
	screen.Show()
}
