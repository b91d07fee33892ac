// An OpenID Connect issuer for tests, of the certified library oidc-provider:
//
//     node issuer.mjs REDIRECT_URL BACKCHANNEL_LOGOUT_URL
//
// It listens on two ports of loopback and prints the URL of each as a line of JSON: `userinfo` gives name and groups from
// userinfo alone, as the specification has it; `id_token` also in the ID token. Each has a client for each algorithm
// (ice-ES256 ...), and one without a secret (ice-public).
//
// GET /interaction/UID?as=alice logs alice in. GET /test/groups?who=alice&groups=a,b changes groups, and GET /test/rotate
// replaces all keys. It ends with its standard input.
import { createServer } from 'node:http';
import { exportJWK, generateKeyPair } from 'jose';
import { Provider } from 'oidc-provider';

const [redirect, backchannel] = process.argv.slice(2);
const algorithms = ['ES256', 'RS256', 'PS256', 'EdDSA'];
const people = { alice: ['ice-admins', 'lab'], bob: ['lab'], carol: [] };
let generation = 0;

async function newKeys() {
  generation += 1;
  return Promise.all(algorithms.map(async (alg) => {
    const { privateKey } = await generateKeyPair(alg, { extractable: true });
    return { ...(await exportJWK(privateKey)), alg, use: 'sig', kid: `${alg}-${generation}` };
  }));
}

function client(id, alg, more) {
  return {
    client_id: id,
    redirect_uris: [redirect],
    post_logout_redirect_uris: [redirect],
    response_types: ['code'],
    grant_types: ['authorization_code'],
    id_token_signed_response_alg: alg,
    backchannel_logout_uri: backchannel,
    backchannel_logout_session_required: true,
    ...more,
  };
}

const secret = { client_secret: 'a secret/of: the tests, with 32 bytes', token_endpoint_auth_method: 'client_secret_basic' };

function provider(url, keys, conformIdTokenClaims) {
  const made = new Provider(url, {
    clients: [
      ...algorithms.map((alg) => client(`ice-${alg}`, alg, secret)),
      client('ice-post', 'ES256', { ...secret, token_endpoint_auth_method: 'client_secret_post' }),
      client('ice-public', 'ES256', { token_endpoint_auth_method: 'none' }),
    ],
    jwks: { keys },
    cookies: { keys: ['of the tests'] },
    scopes: ['openid', 'profile', 'email', 'groups'],
    claims: { openid: ['sub'], profile: ['preferred_username'], email: ['email'], groups: ['groups'] },
    conformIdTokenClaims,
    enabledJWA: { idTokenSigningAlgValues: algorithms },
    pkce: { required: () => true },
    features: { devInteractions: { enabled: false }, backchannelLogout: { enabled: true }, rpInitiatedLogout: { enabled: true } },
    fetch: (to, { dispatcher, ...options }) => globalThis.fetch(to, options), // its own refuses loopback
    findAccount: (_, sub) => people[sub] && {
      accountId: sub,
      claims: async () => ({ sub, preferred_username: `${sub}.smith`, email: `${sub}@example.com`, groups: people[sub] }),
    },
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    loadExistingGrant: async (ctx) => { // no page of consent
      const grant = new ctx.oidc.provider.Grant({ clientId: ctx.oidc.client.clientId, accountId: ctx.oidc.session.accountId });
      grant.addOIDCScope('openid profile email groups');
      await grant.save();
      return grant;
    },
  });
  made.use(async (ctx, next) => {
    if (!ctx.path.startsWith('/interaction/')) return next();
    if (!ctx.query.as) {
      ctx.type = 'html';
      ctx.body = '<form><label>User <input name="as"></label> <button>Sign in</button></form>';
      return undefined;
    }
    await made.interactionFinished(ctx.req, ctx.res, { login: { accountId: ctx.query.as } }, { mergeWithLastSubmission: false });
    ctx.respond = false;
    return undefined;
  });
  for (const event of ['server_error', 'backchannel.error']) made.on(event, (_, error) => console.error(event, error.message));
  return made.callback();
}

const handlers = {};
const urls = {};

async function rotate() {
  const keys = await newKeys();
  for (const [name, url] of Object.entries(urls)) handlers[name] = provider(url, keys, name === 'userinfo');
}

for (const name of ['userinfo', 'id_token']) {
  const server = createServer(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url, urls[name]);
    if (pathname === '/test/groups') people[searchParams.get('who')] = searchParams.get('groups').split(',').filter(Boolean);
    else if (pathname === '/test/rotate') await rotate();
    else return handlers[name](request, response);
    return response.end();
  });
  await new Promise((listening) => { server.listen(0, '127.0.0.1', listening); });
  urls[name] = `http://127.0.0.1:${server.address().port}`;
}
await rotate();
console.log(JSON.stringify(urls));
process.stdin.on('end', () => process.exit()).resume();
