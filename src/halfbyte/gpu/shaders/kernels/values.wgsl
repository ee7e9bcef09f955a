// Eight values of a head, as lanes hold them.
struct Values { a: vec4<f32>, b: vec4<f32> }
