package report

import (
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// groupWidth is how much of a group's width its paths use.
const groupWidth = 0.84

// ours is the path whose values are printed beside its marks.
const ours = "twill"

// grouped draws the values of a panel: bars from zero, or dots on a
// logarithmic axis, each with a whisker from the minimum to the maximum.
type grouped struct{ panel }

// Plot implements plot.Plotter.
func (m grouped) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	thin := draw.LineStyle{Color: pale, Width: 0.5}
	for _, t := range p.Y.Tick.Marker.Ticks(p.Y.Min, p.Y.Max) {
		c.StrokeLine2(thin, c.Min.X, y(t.Value), c.Max.X, y(t.Value))
	}
	for i := range len(m.groups) - 1 {
		at := x(float64(i) + 0.5)
		c.StrokeLine2(thin, at, c.Min.Y, at, c.Max.Y)
	}
	slot := groupWidth / float64(len(m.series))
	for j, s := range m.series {
		for i, v := range s.values {
			if v.Rounds == 0 {
				continue
			}
			left := float64(i) - groupWidth/2 + slot*float64(j)
			m.mark(c, s.path.Name, v, x(left), x(left+slot), y)
		}
	}
	if m.line {
		c.StrokeLine2(baselineStyle, c.Min.X, y(1), c.Max.X, y(1))
	}
}

// baselineStyle is the style of the line at 1.0.
var baselineStyle = draw.LineStyle{Color: colours[Baseline], Width: 1.2, Dashes: []vg.Length{5, 3}}

// mark draws one value between two positions along x.
func (m grouped) mark(c draw.Canvas, path string, v Stat, left, right vg.Length, y func(float64) vg.Length) {
	middle, gap := (left+right)/2, (right-left)*0.06
	if m.log {
		c.DrawGlyph(draw.GlyphStyle{Color: colour(path), Radius: 3.2, Shape: draw.CircleGlyph{}}, vg.Point{X: middle, Y: y(v.Median)})
	} else {
		fill(c, colour(path), left+gap, y(0), right-gap, y(v.Median))
	}
	whisker := draw.LineStyle{Color: ink, Width: 0.7}
	if m.log {
		whisker.Color = colour(path)
	}
	c.StrokeLine2(whisker, middle, y(v.Min), middle, y(v.Max))
	if path == ours {
		style := letters(8)
		style.XAlign, style.YAlign = draw.XCenter, draw.YBottom
		at := y(v.Max) + 2
		if m.log { // the next path's dot may be above
			style.YAlign, at = draw.YTop, min(y(v.Min), y(v.Median)-3)-2
		}
		c.FillText(style, vg.Point{X: middle, Y: at}, m.label(v.Median))
	}
}
