// Copies words in turns of STRIDE vectors: how fast can memory be read and written at once?
// Grid: (STRIDE / 256). Constants: COUNT, STRIDE, both in vectors of 16 bytes, AT_ONCE loads in flight.
@bind var<storage, read> words: array<vec4<u32>>;
@bind var<storage, read_write> copied: array<vec4<u32>>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    for (var i = id.x; i < ${COUNT}u; i += ${AT_ONCE * STRIDE}u) {
#for j in range(AT_ONCE)
        let w${j} = words[i + ${j * STRIDE}u];
#endfor
#for j in range(AT_ONCE)
        copied[i + ${j * STRIDE}u] = w${j};
#endfor
    }
}
